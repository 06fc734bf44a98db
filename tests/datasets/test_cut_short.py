"""Image files that are not whole, told by their heads and ends."""

import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from ds2d2_yolo.datasets.pictures import decode, inspect
from ds2d2_yolo.datasets.source import Source
from tests.datasets.downloads import file_of, picture, zipped

TIFFS = [{}, {"compression": "tiff_lzw"}, {"compression": "jpeg"}]
FORMATS = [*((".tif", options) for options in TIFFS), (".bmp", {}), (".webp", {})]


@pytest.mark.parametrize("suffix, options", FORMATS, ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_other_formats_cut_short_are_found_without_decoding(tmp_path, suffix, options, packed, capfd):
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 255, (120, 161, 3), np.uint8))
    path = tmp_path / f"whole{suffix}"
    pixels.save(path, **options)
    whole = path.read_bytes()
    for share in (1.0, 0.999, 0.99, 0.5):
        folder = tmp_path / str(share)
        folder.mkdir()
        (folder / path.name).write_bytes(whole[: int(len(whole) * share)])
        file = Source(zipped(folder)).files[0] if packed else file_of(folder / path.name)
        if share == 1:
            assert inspect(file).plain
            continue
        with pytest.raises(ValueError, match="^unreadable image"):
            inspect(file)
    assert "heif" not in str(capfd.readouterr())


def test_pages_cut_short_are_named_unless_the_first_is_whole(tmp_path):
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 51, 3), np.uint8))
    pixels.save(tmp_path / "whole.tif", save_all=True, append_images=[pixels])
    whole = (tmp_path / "whole.tif").read_bytes()
    assert not inspect(file_of(tmp_path / "whole.tif")).plain
    path, named = tmp_path / "cut.tif", []
    for length in (*range(8, 300, 7), *range(300, len(whole) - 1, 97)):
        path.write_bytes(whole[:length])
        try:
            head = inspect(file_of(path))
        except ValueError as error:
            assert str(error).startswith("unreadable image")
            named.append(length)
            continue
        assert not head.plain
        np.testing.assert_array_equal(decode(file_of(path), head), np.asarray(pixels)[..., ::-1])
    assert max(named) > pixels.width * pixels.height * 3 and len(named) > 80


def test_a_strip_whose_size_is_wrong_in_the_head_is_whole(tmp_path):
    """As libtiff takes it: of one strip without compression the head need not say how long it is."""
    pixels = np.random.default_rng(0).integers(0, 255, (40, 51, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    data, size = (tmp_path / "a.tif").read_bytes(), struct.pack("<I", pixels.size)
    assert data.count(size) == 1
    (tmp_path / "a.tif").write_bytes(data.replace(size, struct.pack("<I", 2 * pixels.size)))
    assert inspect(file_of(tmp_path / "a.tif")).plain
    np.testing.assert_array_equal(decode(file_of(tmp_path / "a.tif")), pixels[..., ::-1])


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.97])
def test_what_is_cut_short_is_found_without_decoding(tmp_path, suffix, share):
    path = tmp_path / f"a{suffix}"
    picture(path, 200, 200)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match="^unreadable image"):
        inspect(file_of(path))


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
