"""What is written of an image and its objects, and counted of all."""

import numpy as np
import pytest

from ds2d2_yolo.datasets.census import Census
from ds2d2_yolo.datasets.objects import Objects, Plan, upright
from ds2d2_yolo.datasets.one_image import _counts, label_text
from ds2d2_yolo.datasets.tiles import rectangles


def test_sizes_begin_where_coco_has_them():
    boxes = [(0, 0, 32, 31.9), (0, 0, 32, 32), (0, 0, 96, 95.9), (0, 0, 96, 96)]
    assert _counts(Objects.of([(0, upright(*box), False) for box in boxes])) == [[0, 0, 1], [0, 1, 2], [0, 2, 1]]


@pytest.mark.parametrize("rotated", [False, True])
def test_labels_place_objects_of_large_images_to_a_hundredth_of_a_pixel(rotated):
    corners = rectangles([(12345.6, 19876.5, 12367.8, 19890.1)])
    values = np.array(label_text(np.array([3]), corners, 30000, 20000, rotated).split()[1:], float).reshape(-1, 2)
    found = values * (30000, 20000)
    if not rotated:
        found = rectangles([np.r_[found[0] - found[1] / 2, found[0] + found[1] / 2]])[0]
    np.testing.assert_allclose(found, corners[0], atol=0.01)


@pytest.mark.parametrize("rotated", [False, True])
def test_labels_never_leave_the_image(rotated):
    values = label_text(np.array([0]), rectangles([(-1e-3, 5, 100.001, 20)]), 100, 50, rotated).split()[1:]
    values = np.array(values, float)
    expected = [0, 0.1, 1, 0.1, 1, 0.4, 0, 0.4] if rotated else [0.5, 0.25, 1, 0.3]
    assert values.tolist() == pytest.approx(expected, abs=1e-9)


def test_an_object_that_is_difficult_now_is_another():
    one, other, same = (Objects.of([(0, upright(1, 2, 3, 4), flag)]).state() for flag in (False, True, False))
    assert one == same != other


def test_the_census_counts_images_and_numbers_the_worst_problem_first():
    def record(image, problems, counts=()):
        found = {"images": 1, "boxes": 2, "counts": counts, "problems": problems}
        return {"split": "train", "image": image, **found}

    records = [
        record("a", {"rare": 1, "often": 4}, [[0, 1, 3]]),
        record("b", {"often": 3}, [[0, 1, 2], [1, 2, 1]]),
        {**record("c", {"broken": 1}), "images": 0, "boxes": 0, "skipped": True},
    ]
    census = Census(Plan("voc", ["ship", "car"], [], {}), records)
    assert census.splits.loc["train"].tolist() == [2, 2, 4] and census.images == 2
    assert census.objects.to_dict("index") == {
        "ship": {"train": 5, "small": 0, "medium": 5, "large": 0},
        "car": {"train": 1, "small": 0, "medium": 0, "large": 1},
    }
    assert census.problems["reason"].tolist()[0] == "often" and census.problems["number"].tolist() == [7, 1, 1]
    assert census.problems["where"].tolist()[0] == ["train/a", "train/b"]
