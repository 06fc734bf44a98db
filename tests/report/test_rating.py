"""Ratings: equal to pycocotools and faster-coco-eval on the same boxes, and known values for what these do not have."""

import contextlib
import io
import json
import math

import numpy as np
import pandas as pd
import pytest
from faster_coco_eval import COCO as FasterCOCO
from faster_coco_eval import COCOeval_faster
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ds2d2_yolo.datasets.tile_tables import CORNERS
from ds2d2_yolo.datasets.tiles import rectangles
from ds2d2_yolo.report import matching
from ds2d2_yolo.report.detections import Detections, Truth
from ds2d2_yolo.report.rating import counted, hits, rate
from ds2d2_yolo.report.voc import voc_ap

NAMES = {0: "plane", 1: "ship", 2: "car"}


def truth(*rows, images=4, names=NAMES):
    """Rows of image, class and a box xyxy."""
    table = np.array(rows, float).reshape(-1, 6)
    files = tuple(f"{i}.jpg" for i in range(images))
    shapes = np.full((images, 2), 400)
    return Truth(files, shapes, table[:, 0].astype(int), table[:, 1].astype(int), table[:, 2:], names)


def found(*rows):
    """Rows of image, class, score and a box xyxy."""
    table = np.array(rows, float).reshape(-1, 7)
    return Detections(table[:, 0], table[:, 1], table[:, 2], table[:, 3:])


def as_coco(real, detections):
    """Both as COCO data sets, with image ids from 1 on."""

    def rows(image, cls, box, **more):
        box = np.asarray(box, float)
        sides = np.concatenate([box[:, :2], box[:, 2:] - box[:, :2]], 1)
        columns = zip(image.tolist(), cls.tolist(), sides.tolist(), *more.values(), strict=True)
        keys = ("image_id", "category_id", "bbox", *more)
        made = [dict(zip(keys, (row[0] + 1, *row[1:]), strict=True)) for row in columns]
        return [{**r, "id": i, "area": r["bbox"][2] * r["bbox"][3], "iscrowd": 0} for i, r in enumerate(made, 1)]

    images = [{"id": i, "width": 400, "height": 400} for i in range(1, len(real.images) + 1)]
    shared = {"images": images, "categories": [{"id": i, "name": name} for i, name in real.names.items()]}
    scored = rows(detections.image, detections.cls, detections.box, score=detections.score.tolist())
    return {**shared, "annotations": rows(real.image, real.cls, real.box)}, {**shared, "annotations": scored}


def judged(real, detections, limits, original=True):
    """Precision (IoUs, recalls, classes, areas, limits) and recall of pycocotools, or else of faster-coco-eval."""
    sets = []
    with contextlib.redirect_stdout(io.StringIO()):
        for data in as_coco(real, detections):
            sets.append(COCO() if original else FasterCOCO())
            sets[-1].dataset = data
            sets[-1].createIndex()
        judge = (COCOeval if original else COCOeval_faster)(*sets, "bbox")
        judge.params.maxDets = limits
        judge.evaluate()
        judge.accumulate()
    return judge.eval["precision"], judge.eval["recall"]


def mean(part):
    return 100 * part[part > -1].mean() if (part > -1).any() else math.nan


def compare(real, detections, max_det, original=True):
    """Every figure that COCO has, in all and by class."""
    limits = sorted({min(limit, max_det) for limit in (100, 300, max_det)})
    rating = rate(real, detections, max_det)
    precision, recall = judged(real, detections, limits, original)
    last = limits.index(max_det)
    for part, columns in [(rating, slice(None)), *((c, slice(i, i + 1)) for i, c in enumerate(rating.classes))]:
        p, r = precision[:, :, columns, :, last], recall[:, columns, :, last]
        expected = {"ap": mean(p[..., 0]), "ap50": mean(p[0, ..., 0]), "ap75": mean(p[5, ..., 0])}
        for i, size in enumerate(("small", "medium", "large"), 1):
            expected |= {f"ap_{size}": mean(p[..., i]), f"ap50_{size}": mean(p[0, ..., i])}
            expected[f"ar_{size}"] = mean(r[..., i])
        assert {name: getattr(part, name) for name in expected} == pytest.approx(expected, nan_ok=True, abs=1e-9)
        at_limits = {limit: mean(recall[:, columns, 0, i]) for i, limit in enumerate(limits)}
        assert part.ar == pytest.approx(at_limits, nan_ok=True, abs=1e-9)
        curve = [mean(column) for column in p[0, ..., 0]]
        assert part.curve == pytest.approx(curve, nan_ok=True, abs=1e-9)
    return rating


def scene(seed, images=12, objects=150, classes=3, copies=3, noise=0.12):
    """Objects of all sizes and noisy detections of them, some of another class, with scores of two digits (ties)."""
    rng = np.random.default_rng(seed)
    image, cls = rng.integers(0, images, objects), rng.integers(0, classes, objects)
    corner, side = rng.uniform(0, 250, (objects, 2)), np.exp(rng.uniform(2, 5, (objects, 2)))
    source = rng.integers(0, objects, objects * copies)
    at = corner[source] + rng.normal(0, noise, (len(source), 2)) * side[source]
    size = side[source] * np.exp(rng.normal(0, noise, (len(source), 2)))
    kind = np.where(rng.random(len(source)) < 0.2, rng.integers(0, classes, len(source)), cls[source])
    names = {i: f"class {i}" for i in range(classes)}
    real = Truth(
        tuple(f"{i}.jpg" for i in range(images)),
        np.full((images, 2), 400),
        image,
        cls,
        np.concatenate([corner, corner + side], 1),
        names,
    )
    score = rng.random(len(source)).round(2)
    return real, Detections(image[source], kind, score, np.concatenate([at, at + size], 1))


@pytest.mark.parametrize("original", [True, False], ids=["pycocotools", "faster-coco-eval"])
@pytest.mark.parametrize("max_det", [1, 4, 300, 500])
def test_equal_to_coco_on_noisy_scenes(max_det, original):
    rating = compare(*scene(0), max_det, original)
    assert 2 < rating.ap < rating.ap50 < 90


def test_equal_to_coco_in_a_crowd():
    """More than 300 detections of an image and class, each with many neighbours."""
    rating = compare(*scene(1, images=2, objects=300, classes=1, noise=0.3), max_det=400)
    assert rating.ar[100] < rating.ar[300] < rating.ar[400]


# Corners on a coarse grid: boxes that are the same, overlaps that are equal or at a threshold, areas at a limit
GRID = st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(1, 3), st.integers(1, 3))
PLACE = st.tuples(st.integers(0, 1), st.integers(0, 1))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(PLACE, GRID), min_size=1, max_size=12),
    st.lists(st.tuples(PLACE, st.integers(0, 3), GRID), max_size=20),
    st.sampled_from([8.0, 20.0, 32.0]),
    st.integers(1, 6),
)
def test_equal_to_pycocotools_where_everything_is_equal(objects, detections, unit, max_det):
    def box(x, y, w, h):
        return x * unit, y * unit, (x + w) * unit, (y + h) * unit

    real = truth(*[(*place, *box(*grid)) for place, grid in objects], images=2)
    compare(real, found(*[(*place, score / 3, *box(*grid)) for place, score, grid in detections]), max_det)


def test_of_two_objects_that_are_overlapped_alike_the_later_is_taken():
    """The first detection lies between both; the second reaches only the object on the right."""
    left, right = (0, 0, 0, 0, 10, 10), (0, 0, 4, 0, 14, 10)
    detections = found((0, 0, 0.9, 2, 0, 12, 10), (0, 0, 0.8, 6, 0, 16, 10))
    assert hits(truth(left, right), detections)[0].tolist() == [True, False]
    assert hits(truth(right, left), detections)[0].tolist() == [True, True]


def test_an_object_in_the_range_of_areas_goes_before_one_that_is_overlapped_more():
    real = truth((0, 0, 0, 0, 30, 30), (0, 0, 0, 0, 36, 36))
    rating = rate(real, found((0, 0, 0.9, 0, 0, 35, 35)))
    assert (rating.ap50_small, rating.ap50_medium) == pytest.approx((100, 100))
    assert rating.ap50 == pytest.approx(100 * 51 / 101)


@pytest.mark.parametrize("box", [(10, 0, 20, 10), (0, 0, 10, 10), (-20, 0, 20, 10), (0, 0, 40, 10), (5, 0, 15, 10)])
def test_half_an_overlap_is_one_on_whatever_side(box):
    assert hits(truth((0, 0, *box)), found((0, 0, 1, 0, 0, 20, 10)))[:, 0].tolist() == [True] + [False] * 9


def test_hits_are_what_the_average_precision_is_made_of():
    real, detections = scene(2)
    right, counts = hits(real, detections, 6), counted(real, detections, 6)
    assert right.shape == (10, len(detections)) and right.dtype == counts.dtype == bool
    assert not (right & ~counts).any() and 0 < counts.sum() < len(detections)
    assert (right.sum(1)[:-1] >= right.sum(1)[1:]).all() and right[0].sum() > right[9].sum()
    rating = rate(real, detections, 6)
    recall = [right[:, detections.cls == k].sum(1) / (real.cls == k).sum() for k in real.names]
    assert rating.ar[6] == pytest.approx(100 * np.mean(recall))


def test_hits_stand_where_their_detection_stands():
    real = truth((0, 0, 0, 0, 10, 10), (1, 1, 0, 0, 10, 10))
    rows = [(1, 1, 0.2, 0, 0, 10, 7), (0, 0, 0.5, 0, 0, 10, 10), (0, 0, 0.9, 50, 50, 60, 60), (0, 0, 0.4, 0, 0, 10, 9)]
    right = hits(real, found(*rows))
    assert right[:, 0].tolist() == [True] * 5 + [False] * 5  # an IoU of 0.7 reaches the fifth threshold
    assert right[:, 1].all() and not right[:, 2:].any()


def test_a_limit_leaves_out_the_less_sure_of_an_image_and_class():
    rows = [(0, 0, 0.5, 0, 0, 9, 9), (0, 0, 0.6, 0, 0, 9, 9), (0, 1, 0.1, 0, 0, 9, 9), (1, 0, 0.1, 0, 0, 9, 9)]
    assert counted(truth(), found(*rows), 1).tolist() == [False, True, True, True]
    assert counted(truth(), found((0, 7, 0.5, 0, 0, 9, 9)), 1).tolist() == [False]  # of a class that nobody knows


def test_pairs_may_come_in_many_parts(monkeypatch):
    real, detections = scene(3)
    whole = rate(real, detections)
    monkeypatch.setattr(matching, "_PAIRS", 7)
    assert str(rate(real, detections)) == str(whole)


def test_perfect_detections_are_worth_100_everywhere():
    rows = [(0, 0, 0, 0, 20, 20), (1, 0, 50, 50, 100, 100), (2, 1, 0, 0, 200, 200)]
    rating = rate(truth(*rows), found(*[(i, k, 0.5 + i / 10, *box) for i, k, *box in rows]))
    plain = rating.as_dict()
    figures = {
        k: v for k, v in plain.items() if k.startswith(("ap", "ar_", "voc")) or k in ("precision", "recall", "f1")
    }
    assert len(figures) == 17 and list(figures.values()) == pytest.approx([100] * 17)
    assert plain["ar"] == {"100": 100.0, "300": 100.0} and plain["curve"] == pytest.approx([100] * 101)
    assert rating.confidence == 0.5 and (rating.images, rating.objects) == (4, 3)
    assert [c["objects"] for c in plain["classes"]] == [2, 1, 0] and plain["classes"][2]["f1"] is None
    json.dumps(plain, allow_nan=False)


def test_precision_recall_and_f1_are_of_all_boxes_at_the_best_confidence():
    """Four objects; right, right, wrong, right, then five wrong: F1 is best with the first four."""
    objects = [(i, i % 2, 0, 0, 20, 20) for i in range(4)]
    right = [(0, 0, 0.9, 0, 0, 20, 20), (1, 1, 0.8, 0, 0, 20, 20), (2, 0, 0.6, 0, 0, 20, 20)]
    wrong = [(0, 2, 0.7, 0, 0, 20, 20)] + [(3, 0, 0.5 - i / 10, 50, 50, 70, 70) for i in range(5)]
    rating = rate(truth(*objects), found(*right, *wrong))
    assert rating.confidence == pytest.approx(0.6)
    assert (rating.precision, rating.recall, rating.f1) == pytest.approx((75, 75, 75))
    plane, ship, car = rating.classes
    assert (plane.precision, plane.recall, plane.f1) == pytest.approx((100, 100, 100))
    assert (ship.precision, ship.recall, ship.f1) == pytest.approx((100, 50, 200 / 3))
    assert all(math.isnan(v) for v in (car.precision, car.recall, car.f1, car.ap))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_no_confidence_has_a_better_f1(seed):
    real, detections = scene(seed, images=3, objects=12)
    rating, right = rate(real, detections), hits(real, detections)[0]
    for confidence in np.unique(detections.score):
        sure = detections.score >= confidence
        f1 = 200 * (right & sure).sum() / (sure.sum() + len(real.cls))
        assert f1 < rating.f1 + 1e-9
        if confidence == np.float32(rating.confidence):
            assert f1 == pytest.approx(rating.f1)


def test_voc_judges_a_detection_by_the_one_object_that_it_overlaps_most():
    """The second detection lies on the first object, which is taken: COCO gives it the neighbour, VOC nothing."""
    real = truth((0, 0, 0, 0, 10, 10), (0, 0, 0, 2, 10, 12))
    rating = rate(real, found((0, 0, 0.9, 0, 0, 10, 10), (0, 0, 0.8, 0, 0.5, 10, 10.5)))
    assert rating.ap50 == pytest.approx(100)
    assert (rating.voc12, rating.voc07) == pytest.approx((50, 100 * 6 / 11))
    at_half = rate(truth((0, 0, 0, 0, 10, 10)), found((0, 0, 1, 0, 0, 10, 5)))
    assert at_half.ap50 == pytest.approx(100) and at_half.voc12 == 0  # VOC's overlap is above 0.5


@pytest.mark.parametrize("seed", [4, 5])
def test_voc_figures_equal_those_of_whole_scenes(seed):
    real, detections = scene(seed)

    def table(image, cls, box, **more):
        columns = {"image": image, "class": cls, **more}
        return pd.DataFrame({**columns, **dict(zip(CORNERS, rectangles(box).reshape(-1, 8).T, strict=True))})

    objects = table(real.image, real.cls, real.box, difficult=np.zeros(len(real.cls), bool))
    rows = table(detections.image, detections.cls, detections.box.astype(float), score=detections.score)
    # Equal scores stand in the order of the images, as COCO has it
    rows = rows.sort_values("image", kind="stable")
    for rule in ("07", "12"):
        expected = voc_ap(objects, rows, real.names, rule=rule)["ap"]
        rating = rate(real, detections)
        assert [getattr(c, f"voc{rule}") for c in rating.classes] == pytest.approx(expected.tolist())
        assert getattr(rating, f"voc{rule}") == pytest.approx(expected.mean()) and 10 < expected.mean() < 90


def test_without_detections_all_is_0_and_without_objects_nothing_is_known():
    nothing = rate(truth((0, 0, 0, 0, 20, 20)), found())
    assert (nothing.ap, nothing.ar[300], nothing.voc12, nothing.f1, nothing.precision) == (0, 0, 0, 0, 0)
    assert math.isnan(nothing.confidence) and math.isnan(nothing.ap_large) and nothing.curve == (0,) * 101
    for detections in (found(), found((0, 0, 0.9, 0, 0, 20, 20))):
        empty = rate(truth(), detections).as_dict()
        known = {k for k, v in empty.items() if v not in (None, [None] * 101)}
        assert known == {"images", "objects", "ar", "classes"} and empty["ar"] == {"100": None, "300": None}
        assert hits(truth(), detections).shape == (10, len(detections))


def test_detections_of_unknown_classes_are_left_out():
    real, box = truth((0, 0, 0, 0, 20, 20)), (0, 0, 20, 20)
    alone = rate(real, found((0, 0, 0.5, *box)))
    assert str(rate(real, found((0, 9, 0.9, *box), (0, 0, 0.5, *box)))) == str(alone)  # nan is not equal to itself


def test_of_equal_overlaps_vocs_rule_takes_the_first_object():
    left, right = (0, 0, 0, 0, 10, 10), (0, 0, 4, 0, 14, 10)
    between, on_the_left = (0, 0, 0.9, 2, 0, 12, 10), (0, 0, 0.8, 0, 0, 10, 10)
    assert rate(truth(left, right), found(between, on_the_left)).voc12 == pytest.approx(50)
