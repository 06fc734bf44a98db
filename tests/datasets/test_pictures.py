"""Image files of every kind: what their heads say, and their pixels as 8-bit BGR."""

import struct
import threading
import zlib
from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image

from ds2d2_yolo.datasets.pictures import Budget, decode, inspect, to_bytes
from ds2d2_yolo.datasets.source import Source
from tests.datasets.downloads import picture, zipped


def file_of(path):
    return next(f for f in Source(path.parent).files if f.path.name == path.name)


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


def test_a_camera_held_upright(tmp_path):
    image = Image.fromarray(np.zeros((20, 40, 3), np.uint8))
    exif = image.getexif()
    exif[274] = 6  # to be turned by 90 degrees
    image.save(tmp_path / "a.jpg", exif=exif)
    file = file_of(tmp_path / "a.jpg")
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


def test_sixteen_bits_in_three_bands_are_seen(tmp_path):
    pixels = picture(tmp_path / "a.png", 20, 10, dtype=np.uint16) % 4096
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    file = file_of(tmp_path / "a.png")
    assert (inspect(file).kind, inspect(file).plain) == ("RGB;16", False)
    np.testing.assert_array_equal(decode(file), pixels // 16)


def test_depths_are_scaled_by_the_bits_in_use():
    ramp = np.arange(4)[None, :, None].repeat(3, 2)
    assert to_bytes((ramp * 1000).astype(np.uint16))[0, :, 0].tolist() == [0, 62, 125, 187]  # 12 bits
    assert to_bytes((ramp * 60).astype(np.uint16))[0, :, 0].tolist() == [0, 60, 120, 180]
    assert to_bytes((ramp * 20000).astype(np.uint16))[0, :, 0].tolist() == [0, 78, 156, 234]
    assert to_bytes((ramp / 3).astype(np.float32))[0, :, 0].tolist() == [0, 85, 170, 255]
    assert to_bytes(np.array([[[np.nan, -1, 5]]], np.float32)).tolist() == [[[0, 0, 5]]]
    assert to_bytes(np.zeros((0, 4, 3), np.uint16)).shape == (0, 4, 3)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.97])
def test_what_is_cut_short_is_found_without_decoding(tmp_path, suffix, share):
    path = tmp_path / f"a{suffix}"
    picture(path, 200, 200)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match="^unreadable image"):
        inspect(file_of(path))


def test_what_is_no_image(tmp_path):
    (tmp_path / "a.jpg").write_text("hello")
    for function in (inspect, decode):
        with pytest.raises(ValueError, match="^unreadable image"):
            function(file_of(tmp_path / "a.jpg"))


def test_padding_behind_a_jpeg_is_no_damage(tmp_path):
    picture(tmp_path / "a.jpg")
    with open(tmp_path / "a.jpg", "ab") as stream:
        stream.write(b"\0" * 20)
    assert inspect(file_of(tmp_path / "a.jpg")).width == 64


@pytest.mark.parametrize("quality, progressive", [(95, False), (80, True), (1, False)])
@pytest.mark.parametrize("packed", [False, True])
def test_what_a_phone_appends_to_a_jpeg_is_no_damage(tmp_path, quality, progressive, packed):
    """Depth maps, short films; and a thumbnail in the head, whose end is not the image's."""
    thumbnail = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 255, (120, 160, 3), np.uint8))
    path = tmp_path / "a.jpg"
    pixels.save(path, quality=quality, progressive=progressive, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0" + thumbnail)
    whole = path.read_bytes()
    for share, there in ((1.0, True), (0.97, False), (0.4, False)):
        path = tmp_path / str(share) / "a.jpg"
        path.parent.mkdir()
        path.write_bytes(whole[: int(len(whole) * share)] + b"film" * 5000)
        file = Source(zipped(path.parent)).files[0] if packed else file_of(path)
        if there:
            assert (inspect(file).width, inspect(file).height) == (160, 120)
        else:
            with pytest.raises(ValueError, match="^unreadable image: cut short"):
                inspect(file)


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
