"""AP by the rule of Pascal VOC: against values by hand and a slow version that follows the rule word by word."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import MultiPoint

from ds2d2_yolo.datasets.tile_tables import CORNERS
from ds2d2_yolo.datasets.tiles import rectangles
from ds2d2_yolo.errors import UserError
from ds2d2_yolo.report.voc import full_image_scores, voc_ap

NAMES = {0: "plane", 1: "small-vehicle"}


def table(rows, columns):
    """Rows of image, class, a value and a box xyxy, or eight numbers of corners."""
    wide = [[*r[:3], *(rectangles(r[3:]).ravel() if len(r) == 7 else r[3:])] for r in rows]
    return pd.DataFrame(wide, columns=["image", "class", *columns, *CORNERS]).astype({"class": int})


def truth(*rows):
    return table(rows, ["difficult"]).astype({"difficult": bool})


def found(*rows):
    return table(rows, ["score"]).astype({"score": float})


def ap(objects, detections, **options):
    return voc_ap(objects, detections, NAMES, **options)["ap"].tolist()


BOX = (10, 10, 30, 30)
FAR = (100, 100, 120, 120)


@pytest.mark.parametrize("rule, expected", [("07", 100 * (6 * 1 + 5 * 2 / 3) / 11), ("12", 100 * (1 + 2 / 3) / 2)])
@pytest.mark.parametrize("rotated", [False, True])
def test_right_wrong_right(rule, expected, rotated):
    """Precision 1 up to recall 0.5 (recalls 0 to 0.5: six of eleven), 2/3 up to 1."""
    objects = truth(("a", 0, 0, *BOX), ("b", 0, 0, *BOX))
    detections = found(("a", 0, 0.9, *BOX), ("a", 0, 0.8, *FAR), ("b", 0, 0.7, *BOX))
    assert ap(objects, detections, rule=rule, rotated=rotated)[0] == pytest.approx(expected)


def test_three_of_ten_reach_a_recall_of_three_tenths():
    objects = truth(*[(str(i), 0, 0, *BOX) for i in range(10)])
    detections = found(*[(str(i), 0, 0.9, *BOX) for i in range(3)])
    assert ap(objects, detections, rule="07")[0] == pytest.approx(100 * 4 / 11)
    assert ap(objects, detections, rule="12")[0] == pytest.approx(30)


def test_the_second_detection_of_an_object_is_wrong_and_does_not_turn_to_its_neighbour():
    objects = truth(("a", 0, 0, 0, 0, 10, 10), ("a", 0, 0, 0, 2, 10, 12))
    detections = found(("a", 0, 0.9, 0, 0, 10, 10), ("a", 0, 0.8, 0, 0.5, 10, 10.5))
    result = voc_ap(objects, detections, NAMES, rule="12")
    assert result["ap"].iloc[0] == pytest.approx(50) and result["detections"].iloc[0] == 2


def test_difficult_objects_neither_count_nor_punish():
    objects = truth(("a", 0, 0, *BOX), ("a", 0, 1, *FAR))
    twice = found(("a", 0, 0.9, *FAR), ("a", 0, 0.8, *FAR), ("a", 0, 0.7, *BOX))
    result = voc_ap(objects, twice, NAMES)
    assert result["ap"].iloc[0] == pytest.approx(100) and result["objects"].tolist() == [1, 0]
    assert ap(objects, found(("a", 0, 0.9, *BOX)))[0] == pytest.approx(100)
    assert math.isnan(ap(truth(("a", 0, 1, *FAR)), twice)[0])


def test_an_overlap_at_the_threshold_is_not_above_it():
    objects = truth(("a", 0, 0, 0, 0, 10, 10))
    assert ap(objects, found(("a", 0, 1, 0, 0, 10, 5)))[0] == 0
    assert ap(objects, found(("a", 0, 1, 0, 0, 10, 5.01)))[0] == 100
    assert ap(objects, found(("a", 0, 1, 0, 0, 10, 5)), iou=0.49)[0] == 100


def test_classes_and_images_do_not_mix_and_classes_without_objects_are_nan():
    objects = truth(("a", 0, 0, *BOX))
    result = ap(objects, found(("b", 0, 0.9, *BOX), ("a", 1, 0.9, *BOX)))
    assert result[0] == 0 and math.isnan(result[1])
    assert ap(objects, found())[0] == 0


def test_a_turned_box_is_compared_as_a_polygon():
    diamond = (10, 0, 20, 10, 10, 20, 0, 10)
    objects, detections = truth(("a", 0, 0, *diamond)), found(("a", 0, 1, 0, 0, 20, 20))
    assert ap(objects, detections)[0] == 100  # the boxes around them are the same
    assert ap(objects, detections, rotated=True)[0] == 0  # the diamond is half of it
    assert ap(objects, detections, rotated=True, iou=0.49)[0] == 100


def test_corners_in_a_crossed_order_are_a_box_all_the_same():
    bow = (0, 0, 20, 20, 20, 0, 0, 20)
    assert ap(truth(("a", 0, 0, *bow)), found(("a", 0, 1, 0, 0, 20, 20)), rotated=True)[0] == 100
    line = (0, 0, 5, 5, 10, 10, 20, 20)
    assert ap(truth(("a", 0, 0, *bow)), found(("a", 0, 1, *line)), rotated=True)[0] == 0


def test_an_unknown_rule_is_named():
    with pytest.raises(UserError, match="rule=10"):
        voc_ap(truth(), found(), NAMES, rule="10")


def overlap(a, b, rotated):
    a, b = (MultiPoint(np.reshape(c, (4, 2))) for c in (a, b))
    a, b = (s.convex_hull if rotated else s.envelope for s in (a, b))
    union = a.union(b).area
    return a.intersection(b).area / union if union else 0


def slow_ap(objects, detections, rule, rotated):
    """One class, as the development kit's text has it."""
    taken, right = set(), []
    for d in sorted(detections, key=lambda d: -d[2]):
        best, where = -1.0, None
        for i, o in enumerate(objects):
            if o[0] == d[0] and (value := overlap(d[3:], o[3:], rotated)) > best:
                best, where = value, i
        if best > 0.5 and objects[where][2]:
            continue
        right.append(best > 0.5 and where not in taken)
        taken |= {where} if best > 0.5 else set()
    total = sum(not o[2] for o in objects)
    if not total:
        return math.nan
    curve = [(sum(right[: i + 1]) / total, sum(right[: i + 1]) / (i + 1)) for i in range(len(right))]
    best = lambda recall: max((p for r, p in curve if r >= recall - 1e-9), default=0)  # noqa: E731
    if rule == "07":
        return 100 * sum(best(k / 10) for k in range(11)) / 11
    return 100 * sum(best(k / total) for k in range(1, total + 1)) / total


SHAPES = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=4, max_size=4).map(
    lambda points: tuple(float(v) for p in points for v in p)
)
UPRIGHT = st.tuples(st.integers(0, 8), st.integers(0, 8), st.integers(3, 6), st.integers(3, 6)).map(
    lambda b: tuple(rectangles([b[0], b[1], b[0] + b[2], b[1] + b[3]]).ravel())
)
PLACES = st.one_of(UPRIGHT, SHAPES)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.just(0), st.booleans(), PLACES), max_size=8),
    st.lists(st.tuples(st.sampled_from("ab"), st.just(0), PLACES), max_size=12),
    st.lists(st.integers(0, 10), max_size=4),
    st.randoms(use_true_random=False),
    st.sampled_from(["07", "12"]),
    st.booleans(),
)
def test_the_same_as_the_slow_version(objects, detections, copies, random, rule, rotated):
    copied = [(objects[i][0], 0, objects[i][3]) for i in copies if i < len(objects)]
    scores = random.sample(range(1, 1000), len(detections) + len(copied))  # no two are equal
    objects = [(*o[:3], *o[3]) for o in objects]
    detections = [(*d[:2], s / 1000, *d[2]) for d, s in zip(copied + detections, scores, strict=True)]
    expected = slow_ap(objects, detections, rule, rotated)
    assert ap(truth(*objects), found(*detections), rule=rule, rotated=rotated)[0] == pytest.approx(
        expected, nan_ok=True
    )


def test_scores_of_full_images():
    objects = truth(("a", 0, 0, *BOX), ("b", 0, 0, *BOX), ("b", 1, 1, *FAR), ("b", 1, 0, *BOX))
    detections = found(("a", 0, 0.9, *BOX), ("b", 0, 0.8, *BOX), ("b", 1, 0.7, *BOX))
    table_, means = full_image_scores(detections, objects, NAMES)
    assert table_["voc07"].tolist() == table_["voc12"].tolist() == pytest.approx([100, 100])
    assert table_["coco_ap50"].tolist() == pytest.approx([100, 100 * 51 / 101])  # the difficult one was not found
    assert means["voc07"] == pytest.approx(100) and means["coco_ap"] == pytest.approx(table_["coco_ap"].mean())
    without = full_image_scores(detections, objects, NAMES, keep_difficult=False)[1]
    assert [without[k] for k in ("coco_ap", "coco_ap50", "coco_ap75")] == pytest.approx([100] * 3)


def test_scores_without_detections_and_with_thousands_of_one_image():
    objects = truth(*[("a", 0, 0, 10.0 * i, 0, 10.0 * i + 8, 8) for i in range(1500)])
    assert full_image_scores(found(), objects, NAMES)[1]["coco_ap"] == 0
    detections = found(*[("a", 0, 0.5, 10.0 * i, 0, 10.0 * i + 8, 8) for i in range(1500)])
    for rotated in (False, True):
        means = full_image_scores(detections, objects, NAMES, rotated)[1]
        assert list(means.values()) == pytest.approx([100] * 5)
