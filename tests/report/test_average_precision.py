"""COCO's average precision of a data set in memory."""

import json
import math

import numpy as np
import pytest
from faster_coco_eval import COCO, COCOeval_faster

from ds2d2_yolo.report import coco

NAMES = {0: "plane", 1: "ship", 2: "car"}


def data_set(objects, names=NAMES):
    """COCO data set of (image, class, x, y, w, h) rows; images 1 to 4."""
    annotations = [{"image_id": i, "category_id": k, "bbox": box} for i, k, *box in objects]
    images = [{"id": i, "width": 400, "height": 400} for i in range(1, 5)]
    categories = [{"id": i, "name": n} for i, n in names.items()]
    return {"images": images, "annotations": coco._numbered(annotations), "categories": categories}


def detections(objects, score=0.9, dx=0.0):
    return [
        {"image_id": i, "category_id": k, "bbox": [x + dx, y, w, h], "score": score} for i, k, x, y, w, h in objects
    ]


OBJECTS = [(1, 0, 10, 10, 20, 20), (1, 2, 50, 60, 40, 40), (2, 0, 5, 5, 20, 20), (3, 2, 100, 100, 120, 120)]


def test_perfect_detections_score_100_and_sizes_are_told_apart():
    scores = coco.average_precision(data_set(OBJECTS), detections(OBJECTS))
    assert [scores[k] for k in ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")] == [100] * 6
    small = detections([o for o in OBJECTS if o[4] == 20])
    scores = coco.average_precision(data_set(OBJECTS), small)
    assert (scores["ap_small"], scores["ap_medium"], scores["ap_large"]) == (100, 0, 0)
    assert scores["ap50"] == 50  # planes all, cars none, ships not there to be found


def test_shifted_boxes_score_what_their_overlap_allows():
    boxes = [(1, 0, 10, 10, 20, 20), (2, 0, 60, 5, 20, 20)]
    scores = coco.average_precision(data_set(boxes), detections(boxes, dx=4))  # IoU 16 / 24: thresholds 0.5 to 0.65
    assert scores["ap"] == pytest.approx(40) and scores["ap50"] == 100 and scores["ap75"] == 0


def test_a_false_alarm_above_costs_half():
    boxes = [(1, 0, 10, 10, 20, 20)]
    wrong = [{"image_id": 2, "category_id": 0, "bbox": [0, 0, 20, 20], "score": 0.95}]
    assert coco.average_precision(data_set(boxes), detections(boxes) + wrong)["ap50"] == pytest.approx(50)
    wrong[0]["score"] = 0.1
    assert coco.average_precision(data_set(boxes), detections(boxes) + wrong)["ap50"] == 100


def test_classes_are_listed_with_their_objects_and_missing_ones_do_not_count():
    scores = coco.average_precision(data_set(OBJECTS), detections(OBJECTS[:1] + OBJECTS[2:3]))
    plane, ship, car = scores["classes"]
    assert (plane.name, plane.objects, plane.ap, plane.ap50) == ("plane", 2, 100, 100)
    assert (car.name, car.objects, car.ap) == ("car", 2, 0)
    assert ship.objects == 0 and math.isnan(ship.ap) and math.isnan(ship.ap50)
    assert scores["ap"] == 50


def test_no_detections_is_zero_and_no_objects_is_nan():
    nothing = coco.average_precision(data_set(OBJECTS), [])
    assert (nothing["ap"], nothing["ap50"], nothing["ap_small"]) == (0, 0, 0)
    for found in ([], detections(OBJECTS)):
        empty = coco.average_precision(data_set([]), found)
        assert all(math.isnan(empty[k]) for k in empty if k != "classes")
        assert len(empty["classes"]) == 3 and all(math.isnan(c.ap) for c in empty["classes"])


def test_detections_of_classes_the_data_lack_are_ignored():
    other = [(1, 7, 10, 10, 20, 20)]
    assert coco.average_precision(data_set(OBJECTS), detections(OBJECTS) + detections(other))["ap"] == 100


def test_more_than_100_objects_in_an_image_can_be_found():
    crowd = [(1, 0, 12 * (i % 20), 12 * (i // 20), 10, 10) for i in range(250)]
    assert coco.average_precision(data_set(crowd), detections(crowd))["ap"] == 100
    assert coco.average_precision(data_set(crowd), detections(crowd), max_det=100)["ap"] == pytest.approx(40, abs=1.5)


def test_equals_faster_coco_eval_run_straight_on_files(tmp_path):
    rng = np.random.default_rng(0)
    objects = [
        (int(rng.integers(1, 5)), int(rng.integers(0, 2)), *rng.uniform(0, 300, 2), *rng.uniform(8, 110, 2))
        for _ in range(120)
    ]
    truth = data_set(objects)
    found = []
    for i, k, *box in objects:
        if rng.random() < 0.8:
            moved = (np.array(box) + rng.normal(0, 4, 4)).clip(1).tolist()
            found.append({"image_id": i, "category_id": k, "bbox": moved, "score": float(rng.random())})
    for _ in range(60):
        box = [*rng.uniform(0, 300, 2).tolist(), *rng.uniform(8, 110, 2).tolist()]
        found.append({"image_id": 1, "category_id": 0, "bbox": box, "score": float(rng.random())})
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text(json.dumps(found))
    api = COCO(str(tmp_path / "truth.json"))
    judge = COCOeval_faster(api, api.loadRes(str(tmp_path / "found.json")), iouType="bbox")
    judge.params.maxDets = [1, 10, 300]
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    scores = coco.average_precision(truth, found)
    ours = [scores[k] for k in ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")]
    assert ours == pytest.approx(list(100 * judge.stats[:6]), abs=1e-9)
    assert 5 < ours[0] < 95 and len(set(np.round(ours, 3))) == 6
