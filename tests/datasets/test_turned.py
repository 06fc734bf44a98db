"""TIFF files whose tag says that they are to be turned: boxes and pixels go by the image as it is seen."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image

from ds2d2_yolo.datasets import coco_json, one_image
from ds2d2_yolo.datasets.convert import convert
from ds2d2_yolo.datasets.one_image import Options
from ds2d2_yolo.datasets.pictures import decode, inspect
from ds2d2_yolo.datasets.source import Source
from ds2d2_yolo.datasets.tiles import Tiling
from tests.datasets.downloads import coco, file_of, write, zipped
from tests.datasets.test_pictures import tiff

TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def stored(mode):
    """An image of 60 x 40 pixels, and the pixels (BGR) that are seen if it is not turned."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 4), np.uint8)
    pixels[0, 0, 0] = 255
    if mode == "L":
        return Image.fromarray(pixels[..., 0]), pixels[..., [0, 0, 0]]
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 256), pixels[..., [0, 0, 0]]
    return Image.fromarray(pixels[..., : len(mode)].copy()), pixels[..., 2::-1]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
@pytest.mark.parametrize("mode", ["L", "I;16", "RGB", "RGBA"])
def test_every_orientation(tmp_path, mode, compression, packed):
    image, pixels = stored(mode)
    (tmp_path / "in").mkdir()
    for number in TURNED:
        image.save(tmp_path / "in" / f"{number}.tif", tiffinfo={274: number}, compression=compression)
    if packed:
        zipped(tmp_path / "in")
    for file in Source(tmp_path).files:
        head, expected = inspect(file), TURNED[int(file.path.stem)](pixels)
        assert (head.height, head.width) == expected.shape[:2]
        np.testing.assert_array_equal(decode(file, head), expected)
        np.testing.assert_array_equal(decode(file), expected)


@pytest.mark.parametrize("number", TURNED)
def test_three_bands_of_twelve_bits(tmp_path, number):
    """Pillow shows the upper halves alone."""
    values = np.random.default_rng(0).integers(0, 4096, (40, 60, 3), np.uint16)
    values[0, 0] = 4095
    path = tmp_path / "a.tif"
    tiff(path, values, 1)
    content = path.read_bytes()
    places = [content.index(bytes([tag % 256, tag // 256, 3, 0, 1, 0, 0, 0])) for tag in (277, 284)]
    entry = bytes([274 % 256, 274 // 256, 3, 0, 1, 0, 0, 0, number, 0, 0, 0])  # in the place of another
    path.write_bytes(content[: places[0]] + entry + content[places[0] : places[1]] + content[places[1] + 12 :])
    head = inspect(file_of(path))
    np.testing.assert_array_equal(
        decode(file_of(path), head), TURNED[number]((values >> 4).astype(np.uint8))[..., ::-1]
    )


def converted(root, dest, options):
    source = Source(root)
    return convert(coco_json.plan(source), dest, options, source.root, 1)


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_box_shows_what_it_was_drawn_around(tmp_path, dtype, tiled):
    pixels = np.zeros((40, 60), dtype)
    pixels[5:15, 40:56] = np.iinfo(dtype).max
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "a.tif", tiffinfo={274: 6})
    notes = coco([(1, "a.tif")], [(1, 7, [25, 40, 10, 16])])  # as it is seen
    notes["images"][0] |= {"width": 40, "height": 60}
    write(tmp_path / "in" / "train.json", json.dumps(notes))
    converted(tmp_path / "in", tmp_path / "out", Options(tiling=Tiling(size=64, overlap=16) if tiled else None))
    (path,) = (tmp_path / "out" / "images" / "train").iterdir()
    image = np.asarray(cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_GRAYSCALE))
    height, width = image.shape
    (row,) = (tmp_path / "out" / "labels" / "train" / f"{path.stem}.txt").read_text().splitlines()
    x, y, w, h = np.array(row.split()[1:], float) * (width, height, width, height)
    box = image[round(y - h / 2) : round(y + h / 2), round(x - w / 2) : round(x + w / 2)]
    assert box.shape == (16, 10) and box.min() > 250 and (image > 250).sum() == box.size


@pytest.mark.parametrize("tiled", [False, True])
def test_pixels_of_another_size_than_the_head_says_are_refused(tmp_path, monkeypatch, tiled):
    (tmp_path / "in").mkdir()
    for i, name in enumerate("ab"):
        Image.fromarray(np.full((40, 60), 1000 + i, np.uint16)).save(tmp_path / "in" / f"{name}.png")
    write(tmp_path / "in" / "train.json", json.dumps(coco([(1, "a.png"), (2, "b.png")], [(1, 7, [1, 1, 9, 9])])))

    def wrong(file):
        head = inspect(file)
        return replace(head, width=40, height=60) if file.path.stem == "a" else head

    monkeypatch.setattr(one_image, "inspect", wrong)
    options = Options(tiling=Tiling(size=64, overlap=16) if tiled else None)
    census = converted(tmp_path / "in", tmp_path / "out", options)
    assert census.images == 1
    reasons = census.problems.set_index("reason")["where"]
    assert reasons["unreadable image: its pixels are not of the size that its head says"] == ["train/a"]
