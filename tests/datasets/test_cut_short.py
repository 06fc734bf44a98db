"""Image files that are not whole, told by their heads and ends."""

import cv2
import numpy as np
import pytest
from PIL import Image

from ds2d2_yolo.datasets.pictures import inspect
from ds2d2_yolo.datasets.source import Source
from tests.datasets.downloads import file_of, picture, zipped


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}, {"compression": "jpeg"}])
@pytest.mark.parametrize("suffix", [".tif", ".bmp", ".webp"])
@pytest.mark.parametrize("packed", [False, True])
def test_other_formats_cut_short_are_found_without_decoding(tmp_path, suffix, options, packed, capfd):
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 255, (120, 161, 3), np.uint8))
    path = tmp_path / f"whole{suffix}"
    pixels.save(path, **options if suffix == ".tif" else {})
    whole = path.read_bytes()
    for share in (1.0, 0.99, 0.5):
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
