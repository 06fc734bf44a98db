"""Image files of every kind: what their heads say, and their pixels as 8-bit BGR."""

import struct
import threading
import zlib
from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image

from ds2d2_yolo.datasets.pictures import Budget, decode, inspect
from ds2d2_yolo.datasets.source import Source
from tests.datasets.downloads import file_of, picture, zipped


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tif"])
def test_ordinary_images(tmp_path, suffix, packed):
    path = tmp_path / "in" / f"a{suffix}"
    pixels = picture(path, 31, 17)
    if packed:
        zipped(path.parent)
        path = tmp_path / "in.zip"
    file = Source(path).files[0] if packed else file_of(path)
    head = inspect(file)
    assert (head.width, head.height, head.kind, head.plain) == (31, 17, "RGB", True)
    found = decode(file)
    assert found.shape == (17, 31, 3) and found.dtype == np.uint8
    if suffix != ".jpg":
        np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_camera_held_upright(tmp_path, suffix):
    image = Image.fromarray(np.zeros((20, 40, 3), np.uint8))
    exif = image.getexif()
    exif[274] = 6  # to be turned by 90 degrees
    image.save(tmp_path / f"a.{suffix}", exif=exif)
    file = file_of(tmp_path / f"a.{suffix}")
    head = inspect(file)
    assert (head.height, head.width) == decode(file).shape[:2] == (40, 20)


@pytest.mark.parametrize(
    "mode, suffix, plain",
    [
        ("L", "png", True),
        ("LA", "png", True),
        ("RGBA", "png", True),
        ("P", "png", True),
        ("1", "png", True),
        ("I;16", "png", False),
        ("I;16", "tif", False),
        ("RGBA", "tif", False),
        ("LA", "tif", False),
        ("F", "tif", False),
        ("CMYK", "jpg", True),
    ],
)
def test_one_two_four_channels_and_16_bits(tmp_path, mode, suffix, plain):
    ramp = np.tile(np.linspace(0, 255, 32).astype(np.uint8), (24, 1))
    if mode == "I;16":
        image = Image.fromarray(ramp.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(ramp).convert({"1": "1", "LA": "LA", "CMYK": "CMYK"}.get(mode, mode))
    path = tmp_path / f"a.{suffix}"
    image.save(path)
    file = file_of(path)
    assert inspect(file).plain == plain
    found = decode(file)
    assert found.shape == (24, 32, 3) and found.dtype == np.uint8
    assert found.max() > 240 and found.min() < 15  # neither black nor washed out
    if mode not in ("1", "P", "CMYK"):
        assert np.abs(found.astype(int) - ramp[..., None]).max() <= 2


def test_a_fourth_band_does_not_touch_the_others(tmp_path):
    """It may be infrared: OpenCV takes it for opacity, and multiplies with it."""
    bands = np.random.default_rng(0).integers(0, 256, (24, 32, 4), np.uint8)
    Image.fromarray(bands, "RGBA").save(tmp_path / "a.tif")
    file = file_of(tmp_path / "a.tif")
    head = inspect(file)
    assert (head.kind, head.plain) == ("RGBA", False)
    np.testing.assert_array_equal(decode(file, head), bands[..., 2::-1])


def tiff(path, bands, planar):
    """An uncompressed little-endian TIFF of `bands` (h, w, n), each pixel's together or each band by itself."""
    height, width, count = bands.shape
    strips = [bands[..., i].tobytes() for i in range(count)] if planar == 2 else [bands.tobytes()]
    after = 8 + 2 + 10 * 12 + 4  # head, directory, and then what does not fit into it
    several = lambda code, values: struct.pack(f"<{len(values)}{code}", *values)  # noqa: E731
    bits = several("H", [8 * bands.itemsize] * count)
    sizes = several("I", [len(strip) for strip in strips])
    start = after + len(bits) + 2 * len(sizes)
    places = several("I", [start + sum(map(len, strips[:i])) for i in range(len(strips))])

    def entry(tag, kind, number, value):
        return struct.pack("<HHI4s", tag, kind, number, value.ljust(4, b"\0") if len(value) <= 4 else b"")

    held, extra = {258: bits, 273: places, 279: sizes}, b""
    rows = []
    for tag, kind, values in (
        *((256, 3, [width]), (257, 3, [height]), (258, 3, bits), (259, 3, [1]), (262, 3, [2 if count == 3 else 1])),
        *((273, 4, places), (277, 3, [count]), (278, 3, [height]), (279, 4, sizes), (284, 3, [planar])),
    ):
        value = values if tag in held else several("H", values)
        number = len(value) // {3: 2, 4: 4}[kind]
        if len(value) > 4:
            rows.append(struct.pack("<HHII", tag, kind, number, after + len(extra)))
            extra += value
        else:
            rows.append(entry(tag, kind, number, value))
    body = b"II*\0" + struct.pack("<IH", 8, len(rows)) + b"".join(rows) + bytes(4) + extra
    shift = len(body) - start
    assert shift <= 0
    path.write_bytes(body.ljust(start, b"\0") + b"".join(strips))
    return file_of(path)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("count", [1, 3, 4, 5])
@pytest.mark.parametrize("planar", [1, 2])
def test_bands_of_a_tiff_are_read_right_or_not_at_all(tmp_path, bits, count, planar):
    values = np.random.default_rng(0).integers(0, 2**bits, (24, 32, count)).astype(f"u{bits // 8}")
    values[0, 0] = 2**bits - 1
    try:
        file = tiff(tmp_path / "a.tif", values, planar)
        head = inspect(file)
    except ValueError as error:
        assert str(error).startswith("unreadable image: ") and (
            "INTERLEAVE" in str(error) or "gdal_translate" in str(error)
        )
        assert (count, planar) not in {(1, 1), (1, 2)} and (bits, count, planar) != (8, 3, 1)
        return
    assert head.plain == (bits == 8 and count in (1, 3))
    found, expected = decode(file, head), (values >> (bits - 8)).astype(np.uint8)
    expected = np.repeat(expected, 3, 2) if count == 1 else expected[..., 2::-1]
    np.testing.assert_array_equal(found, expected)


def test_what_is_no_image(tmp_path):
    (tmp_path / "a.jpg").write_text("hello")
    for function in (inspect, decode):
        with pytest.raises(ValueError, match="^unreadable image"):
            function(file_of(tmp_path / "a.jpg"))


def test_large_images_are_no_attack(tmp_path):
    assert Image.MAX_IMAGE_PIXELS is None
    head = struct.pack(">II5B", 30000, 30000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    body = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(body))
    assert inspect(file_of(tmp_path / "a.png")).height == 30000


def test_a_budget_is_never_exceeded():
    budget, held, most, lock = Budget(100), [0], [0], threading.Lock()

    def work(pixels):
        with budget.hold(pixels):
            with lock:
                held[0] += min(pixels, 100)
                most[0] = max(most[0], held[0])
            threading.Event().wait(0.002)
            with lock:
                held[0] -= min(pixels, 100)

    threads = [threading.Thread(target=work, args=(p,)) for p in [30, 60, 500, 10, 90, 40] * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert budget.left == 100 and 90 <= most[0] <= 100


@pytest.mark.parametrize("harm", [None, "cut", "gone", "turned", "noise of another size"])
def test_decoding_with_the_size_known(tmp_path, harm, monkeypatch):
    """The array that OpenCV fills is never taken for an image where OpenCV did not fill it."""
    imread, into = cv2.imread, []
    monkeypatch.setattr(cv2, "imread", lambda *args: into.append(args[1:-1]) or imread(*args))
    path = tmp_path / "in" / "a.png"
    pixels = picture(path, 31, 17)
    file = file_of(path)
    head = inspect(file)
    if harm == "turned":
        head = replace(head, width=17, height=31)
    elif harm == "noise of another size":
        pixels = picture(path, 40, 40)
    elif harm in ("cut", "gone"):
        path.write_bytes(path.read_bytes()[:200] if harm == "cut" else b"no image")
        with pytest.raises(ValueError, match="unreadable image"):
            decode(file, head)
        return
    found = decode(file, head)
    np.testing.assert_array_equal(found, pixels)
    assert [array.shape for array in into[0]] == [(head.height, head.width, 3)]
    if harm is None:  # no second copy
        assert len(into) == 1 and found is into[0][0]
