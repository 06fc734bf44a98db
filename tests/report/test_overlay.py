"""Detections drawn into an image, and their legend."""

import numpy as np
import pytest
from ultralytics.utils.plotting import colors

from ds2d2_yolo.report.overlay import with_boxes


def lines(legend):
    """The rows of text in a legend, by where a row of pixels holds anything."""
    inked = (legend != legend[-1, -1]).any((1, 2)).astype(int)
    return int((np.diff(inked, prepend=0) == 1).sum())


def test_boxes_lie_where_they_were_found_and_the_image_stays():
    image = np.full((500, 400, 3), 90, np.uint8)  # enlarged twice
    picture = with_boxes(image, np.array([[10.0, 20, 60, 90]]), [1], {0: "ship", 1: "plane"})
    assert len(picture) == 1000 and picture.shape[1] > 800
    line = np.argwhere((picture[:, :800] == colors(1, bgr=True)).all(2))
    assert np.abs(line.min(0) - (40, 20)).max() <= 1 and np.abs(line.max(0) - (180, 120)).max() <= 1
    assert (picture[200:, :800] == 90).all()


@pytest.mark.parametrize(("height", "columns"), [(1000, 2), (40, 3)])
def test_all_classes_are_in_the_legend(height, columns):
    kinds = list(range(60)) * 2
    image = np.zeros((height, 1000, 3), np.uint8)
    legend = with_boxes(image, np.zeros((120, 4)), kinds, dict.fromkeys(kinds, "A"))[:, 1000:]
    assert sum(lines(part) for part in np.split(legend, columns, axis=1)) == 60


def test_what_is_found_is_counted_by_class_and_named_in_any_alphabet():
    image = np.zeros((1000, 1000, 1), np.uint8)
    one = with_boxes(image, np.zeros((1, 4)), [0], {0: "é"})[:, 1000:]
    assert lines(one) == 1
    assert lines(with_boxes(image, np.zeros((2, 4)), [0, 1], {0: "a", 1: "b"})[:, 1000:]) == 2
    other = with_boxes(image, np.zeros((1, 4)), [0], {0: "ж"})[:, 1000:]
    assert one.shape != other.shape or (one != other).any()  # not question marks
    assert lines(with_boxes(image, np.zeros((0, 4)), [], {})[:, 1000:]) == 1  # says that nothing was found
