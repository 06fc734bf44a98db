"""Annotations made by a tool that shows images as they lie in their files, while EXIF says to turn them."""

import cv2
import numpy as np
import pytest
from PIL import Image

from ds2d2_yolo.datasets import voc
from ds2d2_yolo.datasets.as_shown import as_shown
from ds2d2_yolo.datasets.convert import convert
from ds2d2_yolo.datasets.objects import Objects, upright
from ds2d2_yolo.datasets.one_image import Options
from ds2d2_yolo.datasets.pictures import decode, inspect
from ds2d2_yolo.datasets.source import Source
from tests.datasets.downloads import file_of, write, xml
from tests.datasets.test_turned import TURNED

BOX = (30, 5, 50, 15)


def turned(path, orientation, size=(60, 40)):
    """A dark file with one bright box in it, and that box as it is seen."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
    exif = Image.Exif()
    exif[274] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, exif=exif, quality=100, subsampling=0)
    y, x = np.nonzero(TURNED[orientation](pixels[..., 0]))
    return upright(x.min(), y.min(), x.max() + 1, y.max() + 1)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_boxes_are_turned_as_the_image_is(tmp_path, orientation, suffix):
    seen = turned(tmp_path / f"a{suffix}", orientation)
    file = file_of(tmp_path / f"a{suffix}")
    objects = Objects.of([(0, upright(*BOX), False)], {"other": 2}, (60, 40))
    found = as_shown(objects, file, picture := inspect(file))
    np.testing.assert_array_equal(found.corners[0], seen)  # from the top left, clockwise
    assert found.full is found.corners and found.size == (picture.width, picture.height) == (40, 60)
    assert found.problems == {"other": 2, "annotated as it lies in the file (turned as its EXIF says)": 1}
    assert objects.corners[0].tolist() == upright(*BOX).tolist() and len(objects.problems) == 1
    x1, y1, x2, y2 = (*seen[0].astype(int), *seen[2].astype(int))
    assert decode(file)[y1:y2, x1:x2].min() > 200


@pytest.mark.parametrize(("orientation", "size", "said"), [(6, (60, 40), (40, 60)), (1, (60, 40), (40, 60))])
@pytest.mark.parametrize("known", [True, False])
def test_annotations_of_what_is_seen_stay(tmp_path, orientation, size, said, known):
    turned(tmp_path / "a.jpg", orientation, size)
    file = file_of(tmp_path / "a.jpg")
    objects = Objects.of([(0, upright(*BOX), False)], {}, said if known else None)
    assert as_shown(objects, file, inspect(file)) is objects


def test_boxes_that_reach_where_the_file_has_no_rows_are_of_what_is_seen(tmp_path):
    """Its tool has drawn them in a browser and taken the size from the file's head."""
    turned(tmp_path / "a.jpg", 6)
    file = file_of(tmp_path / "a.jpg")
    objects = Objects.of([(0, upright(2, 3, 9, 9), False), (0, upright(5, 45, 15, 58), False)], {}, (60, 40))
    assert as_shown(objects, file, inspect(file)) is objects
    for box in ((50, 30, 60.6, 40.4), (50, 5, 62, 15), (50, 30, 58, 42)):  # rounded, or over the edge of the file's
        of_the_file = Objects.of([(0, upright(*box), False)], {}, (60, 40))
        assert as_shown(of_the_file, file, inspect(file)) is not of_the_file


def test_neither_is_a_square_nor_half_a_turn_told(tmp_path):
    for orientation, size in ((6, (60, 60)), (3, (60, 40))):
        turned(tmp_path / "a.jpg", orientation, size)
        file = file_of(tmp_path / "a.jpg")
        objects = Objects.of([(0, upright(*BOX), False)], {}, size)
        assert as_shown(objects, file, inspect(file)) is objects


def test_a_conversion_names_what_it_turned(tmp_path):
    seen = turned(tmp_path / "in/a.jpg", 6)
    write(tmp_path / "in/a.xml", xml([("ship", *BOX)], size=(60, 40)))
    source = Source(tmp_path / "in")
    census = convert(voc.plan(source), tmp_path / "out", Options(), source.root)
    row = np.loadtxt(tmp_path / "out/labels/train/a.txt")
    height, width = cv2.imread(str(tmp_path / "out/images/train/a.jpg")).shape[:2]
    expected = np.concatenate([seen.mean(0), np.ptp(seen, axis=0)]) / [width, height, width, height]
    np.testing.assert_allclose(row[1:], expected, atol=1e-6)
    assert "turned as its EXIF says" in str(census) and "size in the annotation" not in str(census)
