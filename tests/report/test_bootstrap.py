"""AP under weights of the images against faster-coco-eval on copies of them, and the verdicts drawn from it."""

import json
import math

import numpy as np
import pytest
from faster_coco_eval import COCO, COCOeval_faster
from hypothesis import given, settings
from hypothesis import strategies as st

from ds2d2_yolo.report import bootstrap as module
from ds2d2_yolo.report.bootstrap import Objects, Ranking, bootstrap, judge
from ds2d2_yolo.report.detections import Detections, Truth
from ds2d2_yolo.report.rating import rate


def make_truth(rows, images, classes=3):
    """Objects from rows of image, class, x, y, w, h."""
    rows = np.array(rows, float).reshape(-1, 6)
    box = np.concatenate([rows[:, 2:4], rows[:, 2:4] + rows[:, 4:]], axis=1)
    names = {i: f"class {i}" for i in range(classes)}
    files = tuple(f"{i}.png" for i in range(images))
    return Truth(files, np.full((images, 2), 64), rows[:, 0].astype(int), rows[:, 1].astype(int), box, names)


def make_found(rows):
    """Detections from rows of image, class, x, y, w, h, score."""
    rows = np.array(rows, float).reshape(-1, 7)
    box = np.concatenate([rows[:, 2:4], rows[:, 2:4] + rows[:, 4:6]], axis=1)
    return Detections(rows[:, 0], rows[:, 1], rows[:, 6], box)


def coco_ap(truth, found, copies):
    """AP, AP50 and AP by class from faster-coco-eval on a data set in which each image stands so many times."""
    images, annotations, detections = [], [], []
    for image, number in enumerate(copies):
        for _ in range(int(number)):
            images.append({"id": len(images) + 1, "file_name": "", "height": 64, "width": 64})
            for source, target in ((truth, annotations), (found, detections)):
                for i in np.flatnonzero(source.image == image):
                    x, y, right, bottom = source.box[i].astype(float).tolist()
                    row = {
                        "image_id": len(images),
                        "category_id": int(source.cls[i]),
                        "bbox": [x, y, right - x, bottom - y],
                    }
                    target.append(row if source is truth else {**row, "score": float(source.score[i])})
    categories = [{"id": i, "name": name} for i, name in truth.names.items()]
    numbered = [{**a, "id": i, "area": a["bbox"][2] * a["bbox"][3], "iscrowd": 0} for i, a in enumerate(annotations, 1)]
    found = [{**a, "id": i, "area": a["bbox"][2] * a["bbox"][3], "iscrowd": 0} for i, a in enumerate(detections, 1)]
    if not numbered:
        return {"ap": math.nan, "ap50": math.nan, "classes": {}}
    sets = {"images": images, "annotations": numbered, "categories": categories}
    judge = COCOeval_faster(COCO(sets), COCO({**sets, "annotations": found}), iouType="bbox")
    judge.params.maxDets = [300]
    judge.evaluate()
    judge.accumulate()
    precision = judge.eval["precision"][:, :, :, 0, 0]  # IoUs, recalls, classes; -1 where there is no object

    def mean(part):
        return float(100 * part[part > -1].mean()) if (part > -1).any() else math.nan

    classes = {k: (mean(precision[:, :, i]), mean(precision[0, :, i])) for i, k in enumerate(judge.params.catIds)}
    return {"ap": mean(precision), "ap50": mean(precision[0]), "classes": classes}


def weighted_ap(truth, found, weights):
    objects = Objects(truth, np.arange(len(truth.images))).count(weights)
    return 100 * Ranking(truth, judge(truth, found)).average_precision(weights, objects)


PLACE = st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 9), st.integers(0, 9), *[st.integers(4, 7)] * 2)
SCORE = st.integers(1, 6).map(lambda v: v / 8)  # few values: many ties


@settings(max_examples=40, deadline=None)
@given(
    st.lists(PLACE, max_size=14),
    st.lists(st.tuples(PLACE, SCORE), max_size=14),
    st.lists(st.tuples(st.integers(0, 13), SCORE), max_size=8),
    st.lists(st.integers(0, 3), min_size=4, max_size=4),
)
def test_weights_count_as_copies_of_the_images(objects, strays, right, weights):
    right = [(*objects[i], score) for i, score in right if i < len(objects)]
    truth, found = make_truth(objects, 4), make_found([(*place, score) for place, score in strays] + right)
    apart = Detections(found.image, found.cls, found.score + np.arange(len(found)) / 1000, found.box)
    for detections, copies in ((found, np.ones(4)), (apart, np.array(weights, float))):
        expected, result = coco_ap(truth, detections, copies), weighted_ap(truth, detections, copies)
        for k, index in enumerate(np.unique(truth.cls)):
            ap, ap50 = expected["classes"].get(index, (math.nan, math.nan))  # no copy of an image with the class
            assert result[:, k].mean() == pytest.approx(ap, abs=1e-6, nan_ok=True)
            assert result[0, k] == pytest.approx(ap50, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("objects", [1, 3, 7, 10, 57, 100, 700, 12345])
def test_recalls_are_reached_by_the_comparison_of_floats_that_coco_makes(objects):
    expected = [max(np.searchsorted(np.arange(objects + 1) / objects, r), 1) for r in module.RECALLS]
    assert module._needed(np.array([float(objects)]))[0].tolist() == expected


def scenes(images, per_image, shift, seed=0):
    """Objects in a row, and detections of each that lie a random part of `shift` pixels off."""
    rng, rows, found = np.random.default_rng(seed), [], []
    for image in range(images):
        for i in range(per_image):
            box = (image, i % 2, 100 * i, 0, 20, 20)
            rows.append(box)
            found.append((*box[:2], box[2] + shift * rng.random(), *box[3:], rng.random()))
    return make_truth(rows, images), make_found(found)


def test_a_clear_lead_is_seen_both_ways_and_by_class():
    truth, good = scenes(40, 4, 2)
    bad = scenes(40, 4, 12, seed=1)[1]
    a, b = judge(truth, good), judge(truth, bad)
    result, mirrored = bootstrap(truth, a, b, draws=200), bootstrap(truth, b, a, draws=200)
    for forth, back in (
        (result.ap, mirrored.ap),
        (result.ap50, mirrored.ap50),
        (result.classes[1], mirrored.classes[1]),
    ):
        assert forth.verdict == "ahead" and back.verdict == "behind"
        assert 0 < forth.low < forth.difference < forth.high
        assert forth.difference == pytest.approx(forth.a - forth.b) == pytest.approx(-back.difference)
        assert back.low == pytest.approx(-forth.high, abs=1e-9)
    expected = coco_ap(truth, good, np.ones(40))
    assert (result.ap.a, result.ap50.a) == pytest.approx((expected["ap"], expected["ap50"]), abs=1e-6)


def test_equal_recipes_are_within_noise_and_identical_models_do_not_differ():
    truth, one = scenes(40, 4, 6)
    other = scenes(40, 4, 6, seed=2)[1]
    a, b = judge(truth, one), judge(truth, other)
    result = bootstrap(truth, a, b, draws=200)
    assert result.ap.verdict == "within noise" and result.ap.low < 0 < result.ap.high
    same = bootstrap(truth, a, a, draws=20).ap
    assert (same.difference, same.low, same.high, same.verdict) == (0, 0, 0, "within noise")


def test_the_band_of_many_classes_is_wider_than_the_interval_of_one():
    """Normal draws: the largest of 20 deviations stays below 3.02 in 95 % of the draws, one below 1.96."""
    rng = np.random.default_rng(0)
    for classes, expected in ((1, 1.96), (20, 3.02)):
        drawn = rng.normal(5, 2, (40_000, classes))
        point = np.stack([np.full(classes, 30.0), np.full(classes, 25.0)])
        found = module._together(point, drawn, [50] * classes, 0.95)
        assert [one.difference for one in found] == [5.0] * classes
        assert np.allclose([(one.high - one.low) / 2 for one in found], 2 * expected, rtol=0.03)
        assert {one.verdict for one in found} == {"ahead" if classes == 1 else "within noise"}


def test_classes_that_never_vary_or_are_too_rare_have_no_say_in_the_band():
    drawn = np.stack([np.random.default_rng(0).normal(3, 1, 4000), np.zeros(4000), np.full(4000, np.nan)], 1)
    point = np.array([[9.0, 4.0, 2.0], [6.0, 4.0, 1.0]])
    varied, still, rare = module._together(point, drawn, [50, 50, 3], 0.95)
    assert varied.verdict == "ahead" and varied.low == pytest.approx(1.04, abs=0.1)
    assert (still.low, still.high, still.verdict) == (0, 0, "within noise")
    assert rare.verdict == "too few images" and math.isnan(rare.low)


def test_the_interval_is_the_spread_of_a_mean_where_ap_is_one():
    """With every detection right, each at one score, AP50 of an image set is the share of its objects that is found,
    up to the grid of recalls: its standard error over images is known."""
    images, rng = 400, np.random.default_rng(3)
    rows = [(i, 0, 0, 0, 20, 20) for i in range(images)]
    there = rng.random(images) < 0.7
    truth, full = make_truth(rows, images), make_found([(*r, 0.5) for r in rows])
    part = make_found([(*r, 0.5) for r, keep in zip(rows, there, strict=True) if keep])
    found = bootstrap(truth, judge(truth, part), judge(truth, full), draws=500).ap50
    error = 100 * math.sqrt(there.mean() * (1 - there.mean()) / images)
    assert found.difference == pytest.approx(-100 * (1 - there.mean()), abs=1)
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(error, rel=0.15)


def test_seeds_are_averaged():
    truth, one = scenes(20, 4, 6)
    a, b = judge(truth, one), judge(truth, scenes(20, 4, 6, seed=5)[1])
    single = [bootstrap(truth, m, a, draws=5).ap.a for m in (a, b)]
    assert bootstrap(truth, [a, b], a, draws=5).ap.a == pytest.approx(np.mean(single))


def test_the_same_seed_gives_the_same_interval_and_progress_is_told():
    truth, one = scenes(20, 2, 6)
    a, b, told = judge(truth, one), judge(truth, scenes(20, 2, 6, seed=5)[1]), []
    first, again = (bootstrap(truth, a, b, draws=30, seed=7, progress=told.append) for _ in range(2))
    assert first == again and told == 2 * list(range(1, 31))
    assert bootstrap(truth, a, b, draws=30, seed=8).ap.low != first.ap.low
    wide, narrow = (bootstrap(truth, a, b, draws=200, level=level).ap for level in (0.99, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_rows_that_do_not_count_and_classes_without_objects_are_left_out():
    truth = make_truth([(0, 1, 0, 0, 20, 20)], 12)
    found = make_found([(0, 1, 0, 0, 20, 20, 0.5), (3, 1, 0, 0, 20, 20, 0.9), (3, 2, 0, 0, 20, 20, 0.9)])
    every, some = judge(truth, found), judge(truth, found.of(0))
    result = bootstrap(truth, every, some, draws=3)
    assert (result.ap.a, result.ap.b) == pytest.approx((50, 100)) and list(result.classes) == [1]


def test_detections_beyond_the_limit_do_not_count():
    truth = make_truth([(0, 0, 0, 0, 20, 20), (0, 0, 50, 0, 20, 20)], 12)
    found = make_found([(0, 0, 50, 0, 20, 20, 0.5), (0, 0, 0, 0, 20, 20, 0.9)])
    result = bootstrap(truth, judge(truth, found), judge(truth, found, max_det=1), draws=2)
    assert result.ap.a == pytest.approx(100) and result.ap.b == pytest.approx(100 * 51 / 101)


def test_the_figures_are_those_of_the_rating():
    truth, found = scenes(30, 5, 9)
    rating, result = rate(truth, found), bootstrap(truth, judge(truth, found), judge(truth, found), draws=1)
    assert (result.ap.a, result.ap50.a) == pytest.approx((rating.ap, rating.ap50), abs=1e-6)
    assert result.classes[1].a == pytest.approx(rating.classes[1].ap, abs=1e-6)


def test_too_few_images_and_no_objects_are_no_verdict():
    truth, one = scenes(module.MIN_IMAGES - 1, 4, 6)
    result = bootstrap(truth, judge(truth, one), judge(truth, make_found([])), draws=5)
    assert result.ap.verdict == "too few images" and math.isnan(result.ap.low) and result.ap.b == 0
    assert {row.verdict for row in result.classes.values()} == {"too few images"}
    truth, one = scenes(module.MIN_IMAGES, 4, 6)
    enough = bootstrap(truth, judge(truth, one), judge(truth, make_found([])), draws=5)
    assert {enough.ap.verdict, *(row.verdict for row in enough.classes.values())} == {"ahead"}
    empty = bootstrap(make_truth([], 30), judge(truth, one), judge(truth, one), draws=5)
    assert empty.ap.verdict == "too few images" and math.isnan(empty.ap.difference) and empty.classes == {}
    nothing = judge(make_truth([], 0), make_found([]))
    assert math.isnan(bootstrap(make_truth([], 0), nothing, nothing, draws=2).ap.a)


def test_a_rare_class_has_no_verdict_though_the_others_have():
    truth, one = scenes(30, 2, 2)
    rare = Truth(truth.images, truth.shapes, truth.image, np.r_[truth.cls[:-1], 2], truth.box, truth.names)
    verdicts = bootstrap(rare, judge(rare, one), judge(rare, make_found([])), draws=60).classes
    assert [verdicts[k].verdict for k in (0, 1, 2)] == ["ahead", "ahead", "too few images"]


def test_as_dict_is_plain_json():
    truth, one = scenes(4, 2, 6)
    a = judge(truth, one)
    values = json.loads(json.dumps(bootstrap(truth, a, a, draws=2).as_dict(), allow_nan=False))
    assert (
        values["ap"]["low"] is None and values["draws"] == 2 and values["classes"]["0"]["verdict"] == "too few images"
    )


def test_every_image_is_drawn():
    rows = [(image, 0, 0, 0, 20, 20) for image in range(12)]
    truth, whole = make_truth(rows, 12), make_found([(*row, 0.5) for row in rows])
    for image in (0, 11):
        without = make_found([(*row, 0.5) for row in rows if row[0] != image])
        assert bootstrap(truth, judge(truth, whole), judge(truth, without), draws=200).ap.high > 0


def test_images_without_objects_are_no_evidence():
    rows = [(image, 0, 0, 0, 20, 20) for image in range(module.MIN_IMAGES - 1)]
    truth, whole = make_truth(rows, 30), make_found([(*row, 0.5) for row in rows])
    assert bootstrap(truth, judge(truth, whole), judge(truth, make_found([])), draws=20).ap.verdict == "too few images"


def test_bands_of_classes_have_the_level_asked_for():
    truth, one = scenes(40, 4, 6)
    other = scenes(40, 4, 6, seed=2)[1]
    pair = judge(truth, one), judge(truth, other)
    wide, narrow = (bootstrap(truth, *pair, draws=200, level=level).classes[1] for level in (0.99, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high
