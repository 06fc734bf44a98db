"""The merge command run again, names that share a file, heads with NMS inside, and NMS of many boxes."""

import json
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import torch
import yaml
from torchvision.ops import nms
from ultralytics import YOLO

from ds2d2_yolo.datasets import merge as merging
from ds2d2_yolo.datasets import predictions, submit
from ds2d2_yolo.datasets.exported import Fixed
from ds2d2_yolo.datasets.predictions import Detections, detections_of
from ds2d2_yolo.datasets.submit import run, write_submission
from ds2d2_yolo.datasets.tile_tables import read_tiled
from ds2d2_yolo.datasets.tiles import Tiling, rectangles
from ds2d2_yolo.errors import UserError
from tests.datasets.test_merge import tiles_of
from tests.datasets.test_submission_files import merged_table
from tests.datasets.test_submit import NAMES, checkpoint, predictions_file, tiled  # noqa: F401  a fixture among them
from tests.detectors.small import KINDS, detector
from tests.helpers.checkpoints import save_checkpoint


@pytest.fixture
def warned(monkeypatch):
    """What the command warns of, line by line."""
    logger = Mock()
    for module in (submit, predictions):
        monkeypatch.setattr(module, "LOGGER", logger)
    return lambda: [call.args[0] for call in logger.warning.call_args_list]


# Names


@pytest.mark.parametrize("names", [("small vehicle", "small-vehicle"), ("a/b", "a b"), ("ship", "ship")])
def test_two_classes_of_one_file_are_refused_before_anything_is_written(tmp_path, names):
    rows = merged_table(("P1", 0, 0.5, 1, 2, 3, 4))
    with pytest.raises(UserError, match=f"classes '{names[0]}' and '{names[1]}' would share one file; rename one"):
        write_submission(rows, dict(enumerate(names)), tmp_path / "Task2", rotated=False)
    assert not list(tmp_path.iterdir())


def test_names_that_differ_by_case_go_where_the_disk_tells_them_apart(tmp_path, monkeypatch):
    rows, names = merged_table(("P1", 0, 0.5, 1, 2, 3, 4)), {0: "Ship", 1: "ship"}
    if not submit._folds_case(tmp_path):
        write_submission(rows, names, tmp_path / "apart", rotated=False)
        assert len(list((tmp_path / "apart").iterdir())) == 2
    monkeypatch.setattr(submit, "_folds_case", lambda path: True)
    with pytest.raises(UserError, match="classes 'Ship' and 'ship' would share one file"):
        write_submission(rows, names, tmp_path / "alike", rotated=False)


def test_whether_the_disk_folds_case_is_seen_by_a_folder_that_has_letters(tmp_path):
    (tmp_path / "Lower/0").mkdir(parents=True)
    assert not submit._folds_case(Path("/"))
    if not submit._folds_case(tmp_path / "Lower/0/none"):
        (tmp_path / "lOWER").symlink_to(tmp_path / "Lower")  # as a disk that folds case shows it
        assert submit._folds_case(tmp_path / "Lower/0/none")


def test_two_classes_of_one_file_cost_the_submission_alone(tiled, warned):  # noqa: F811
    data = yaml.safe_load((tiled / "data.yaml").read_text())
    data["names"][2] = "small-vehicle"
    (tiled / "data.yaml").write_text(yaml.safe_dump(data))
    target = run(tiled / "data.yaml", predictions=predictions_file(tiled), target=tiled / "there")["target"]
    (line,) = warned()
    assert line.startswith("no submission files for DOTA's server: classes 'small vehicle' and 'small-vehicle'")
    assert sorted(f.name for f in target.iterdir()) == ["predictions.json", "predictions.sha256", "scores.csv"]


# The same folder again


def test_results_that_the_new_run_does_not_write_go(tiled):  # noqa: F811
    given, there = predictions_file(tiled), tiled / "there"

    def left(**options):
        run(tiled / "data.yaml", predictions=given, target=there, **options)
        return {f.name for f in there.iterdir()} - {"predictions.json", "predictions.sha256"}

    assert left() == {"Task2", "Task2.zip", "scores.csv"}
    assert left(rotated=True) == {"Task1", "Task1.zip", "scores.csv"}
    for name in ("Task1/notes.md", "Task1-sent.zip", "mine.csv"):
        (there / name).write_text("not the command's own")
    own = {"Task1-sent.zip", "mine.csv"}
    objects = (tiled / "objects.csv").rename(tiled / "elsewhere.csv")
    assert left(rotated=False) == {"Task1", "Task2", "Task2.zip"} | own
    assert [f.name for f in (there / "Task1").iterdir()] == ["notes.md"]
    objects.rename(tiled / "objects.csv")
    for table in ("tiles.csv", "objects.csv"):
        (tiled / table).write_text((tiled / table).read_text().replace(",P2,", ",P 2,"))
    assert left(rotated=False) == {"Task1", "scores.csv"} | own


def test_a_folder_without_an_earlier_result_keeps_what_is_in_it(tiled):  # noqa: F811
    there = tiled / "there"
    (there / "Task1").mkdir(parents=True)
    for name in ("Task1.zip", "Task1/Task1_mine.txt"):
        (there / name).write_text("mine")
    run(tiled / "data.yaml", predictions=predictions_file(tiled), target=there)
    assert (there / "Task1.zip").read_text() == (there / "Task1/Task1_mine.txt").read_text() == "mine"
    assert (there / "Task2.zip").exists()


def test_detections_kept_by_a_version_that_knew_no_files_are_taken(tiled):  # noqa: F811
    options = {"imgsz": 96, "device": "cpu", "conf": 1e-4, "target": tiled / "there"}
    model, note = checkpoint(tiled / "best.pt"), tiled / "there/tiles/settings.json"
    run(tiled / "data.yaml", model, **options)
    new = note.read_text()
    note.write_text(json.dumps({k: v for k, v in json.loads(new).items() if k != "files"}, indent=1, sort_keys=True))
    run(tiled / "data.yaml", model, **options)
    assert note.read_text() == new and "files" in json.loads(new)


def test_scores_are_written_whole_or_not_at_all(tiled, monkeypatch):  # noqa: F811
    placed, real = [], Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: placed.append(Path(to).name) or real(self, to))
    target = run(tiled / "data.yaml", predictions=predictions_file(tiled))["target"]
    assert {"predictions.json", "Task2.zip", "scores.csv"} <= set(placed)
    assert not list(target.rglob("*.part"))


@pytest.mark.parametrize("change", ["size", "suffix"])
def test_detections_of_other_images_are_not_taken_again(tiled, change):  # noqa: F811
    options = {"imgsz": 96, "device": "cpu", "conf": 1e-4, "target": tiled / "there"}
    model, image = checkpoint(tiled / "best.pt"), tiled / "images/val/P2__0.png"
    run(tiled / "data.yaml", model, **options)
    run(tiled / "data.yaml", model, **options)
    picture = cv2.imread(str(image))
    if change == "size":
        cv2.imwrite(str(image), picture // 2)
    else:
        image.rename(image.with_suffix(".PNG"))
    with pytest.raises(UserError, match="holds detections of another model, other tiles or settings"):
        run(tiled / "data.yaml", model, **options)


@pytest.mark.parametrize("rotated", [None, False, True])
def test_no_detections_at_all_say_which_task_they_make(tiled, warned, rotated):  # noqa: F811
    (tiled / "predictions.json").write_text("[]")
    target = run(tiled / "data.yaml", predictions=tiled / "predictions.json", rotated=rotated)["target"]
    assert (target / ("Task1.zip" if rotated else "Task2.zip")).exists()
    lines = warned()
    assert len(lines) == (rotated is None)
    assert all("is empty and taken for upright boxes (Task2); rotated=True makes it Task1" in line for line in lines)


# Heads with NMS inside


@pytest.mark.parametrize("kind", KINDS)
def test_the_thresholds_of_a_head_with_nms_inside_are_those_given(tiled, kind, warned):  # noqa: F811
    model = detector(kind)
    model.names = NAMES
    file, data = save_checkpoint(tiled / "best.pt", model), read_tiled(tiled / "data.yaml", "val")

    def found(**settings):
        return detections_of(file, data, imgsz=96, device="cpu", **settings)

    own, low = found(), found(conf=0.001)
    assert own.scores.min() > 0.05  # the head's own
    assert low.scores.min() < 0.05 and len(low.tile) > len(own.tile)
    assert len(found(iou=0.1).tile) < len(own.tile) < len(found(iou=0.95).tile)
    assert found(conf=0.3).scores.min(initial=1) > 0.3
    for name, options in {"own": {}, "low": {"conf": 0.001, "iou": 0.3}}.items():
        run(tiled / "data.yaml", file, imgsz=96, device="cpu", target=tiled / name, **options)
    claims = [json.loads((tiled / name / "tiles/settings.json").read_text()) for name in ("own", "low")]
    assert [(claim["conf"], claim["iou"]) for claim in claims] == [(0.05, 0.5), (0.001, 0.3)]
    assert not warned()


def test_an_exported_head_with_nms_inside_says_what_does_not_reach_it(tiled, warned):  # noqa: F811
    model = detector("retinanet")
    model.names = NAMES
    file = YOLO(str(save_checkpoint(tiled / "best.pt", model))).export(
        format="onnx", imgsz=64, simplify=False, device="cpu", verbose=False
    )
    data = read_tiled(tiled / "data.yaml", "val")
    detections_of(file, data, device="cpu", max_det=100)
    assert not warned()
    detections_of(file, data, device="cpu", max_det=100, conf=0.001, iou=0.3)
    (line,) = warned()
    assert "part of the exported model (RetinaNetDetect)" in line and "conf=0.001 iou=0.3 cannot bring back" in line
    assert Fixed(final=True).unheard({"conf": 0.001, "iou": None}) is None


# Many boxes


def crowd(kind, n, seed):
    """Boxes and scores ``(n,)``, with equal scores among them."""
    random = np.random.default_rng(seed)
    if kind == "grid":  # overlaps of exactly the thresholds, and boxes that only touch
        low = random.integers(0, 60, (n, 2)).astype(float)
        boxes = np.concatenate([low, low + random.choice([5, 10, 20], (n, 2))], 1)
    elif kind == "nested":
        low = random.uniform(0, 30, (n, 2))
        boxes = np.concatenate([low, 100 - random.uniform(0, 30, (n, 2))], 1)
    else:
        low = random.uniform(0, 400 if kind == "dense" else 5000, (n, 2))
        boxes = np.concatenate([low, low + random.uniform(3, 40, (n, 2))], 1)
    return boxes, random.random(n).round(2)


@pytest.mark.parametrize("pairs", [2**20, 500])
@pytest.mark.parametrize("kind", ["dense", "sparse", "grid", "nested"])
def test_nms_of_many_boxes_keeps_what_torchvision_keeps_in_its_order(kind, pairs, monkeypatch):
    monkeypatch.setattr(merging, "_PAIRS", pairs)
    for seed, threshold in enumerate((0.0, 0.1, 1 / 3, 0.5, 0.7, 1.0)):
        boxes, scores = crowd(kind, 700, seed)
        expected = nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold).numpy()
        assert merging._upright_nms(boxes, scores, threshold).tolist() == expected.tolist()


def test_many_boxes_are_not_all_compared_with_all(monkeypatch):
    boxes, scores = crowd("dense", 400, 0)
    found = Detections(np.zeros(400, int), np.zeros(400, int), scores, rectangles(boxes.clip(0, 430)))
    tiles = tiles_of([(430, 430)], Tiling(430, 0))
    expected = merging.merge(found, tiles)
    called = Mock(side_effect=nms)
    monkeypatch.setattr(merging, "nms", called)
    assert merging._MANY <= 10_000
    monkeypatch.setattr(merging, "_MANY", 100)
    assert merging.merge(found, tiles).equals(expected)
    assert not called.called and len(expected) < 400
