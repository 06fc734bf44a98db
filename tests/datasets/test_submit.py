"""The merge command: what it writes, resuming, and what it says of what does not fit."""

import json
import zipfile
from unittest.mock import Mock

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionPredictor
from ultralytics.nn.tasks import DetectionModel, OBBModel
from ultralytics.utils import YAML
from ultralytics.utils.checks import check_yaml

from ds2d2_yolo.datasets import predictions, submit, tile_tables
from ds2d2_yolo.datasets.predictions import detections_of, predictions_from_json
from ds2d2_yolo.datasets.submit import run
from ds2d2_yolo.datasets.tile_tables import CORNERS, read_tiled
from ds2d2_yolo.datasets.tiles import rectangles
from ds2d2_yolo.errors import UserError
from tests.datasets.downloads import tree

NAMES = {0: "plane", 1: "small vehicle", 2: "ship"}
OBJECTS = [("0007", 0, 10, 10, 30, 30), ("0007", 1, 92, 40, 117, 60), ("P2", 0, 5, 5, 20, 25)]
TILES = [("0007__0", "0007", 0, 160), ("0007__60", "0007", 60, 160), ("P2__0", "P2", 0, 100)]


@pytest.fixture
def tiled(tmp_path):
    """Two images, of 160 x 100 and 100 x 100, in three tiles of 100 px."""
    (tmp_path / "images/val").mkdir(parents=True)
    rows = []
    for tile, image, x, width in TILES:
        picture = np.random.default_rng(x).integers(0, 255, (100, 100, 3), np.uint8)
        cv2.imwrite(str(tmp_path / f"images/val/{tile}.png"), picture)
        rows.append(("val", tile, image, x, 0, 100, 100, 100, 100, width, 100))
    size = ["width", "height", "tile_width", "tile_height", "image_width", "image_height"]
    tiles = pd.DataFrame(rows, columns=["split", "tile", "image", "x", "y", *size])
    tiles.sample(frac=1, random_state=1).to_csv(tmp_path / "tiles.csv", index=False)
    objects = [("val", i, NAMES[k], 0, *rectangles(box)[0].ravel()) for i, k, *box in OBJECTS]
    table = pd.DataFrame(objects, columns=["split", "image", "class", "difficult", *CORNERS])
    table.to_csv(tmp_path / "objects.csv", index=False)
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"train": "images/train", "val": "images/val", "names": NAMES}))
    return tmp_path


def predictions_file(folder, rotated=False):
    """What Ultralytics writes of a detector that knows all objects, a piece of one among them."""
    seen = [("0007__0", 0, 10, 10, 30, 30), ("0007__60", 1, 32, 40, 57, 60), ("0007__0", 1, 92, 40, 100, 60)]
    rows = []
    for tile, kind, x1, y1, x2, y2 in [*seen, ("P2__0", 0, 5, 5, 20, 25)]:
        row = {"image_id": tile, "file_name": f"{tile}.png", "category_id": kind + 1, "score": 0.87654}
        shape = {"rbox": [], "poly": rectangles([x1, y1, x2, y2])[0].ravel().tolist()}
        rows.append({**row, **(shape if rotated else {"bbox": [x1, y1, x2 - x1, y2 - y1]})})
    (folder / "predictions.json").write_text(json.dumps(rows))
    return folder / "predictions.json"


def checkpoint(path, names=NAMES, kind="yolo26"):
    """A quarter of the width of the family's smallest one."""
    torch.manual_seed(0)
    layout = YAML.load(check_yaml(f"{kind}.yaml")) | {"scales": {"n": [0.5, 0.0625, 1024]}, "scale": "n"}
    model = (OBBModel if "obb" in kind else DetectionModel)(layout, nc=len(names), verbose=False)
    model.names, model.args, model.task = names, {"imgsz": 96}, "obb" if "obb" in kind else "detect"
    torch.save({"model": model, "train_args": {}}, path)
    return path


@pytest.mark.parametrize("rotated", [False, True])
def test_from_ultralytics_predictions_to_submission_and_ap(tiled, rotated, capsys):
    result = run(tiled / "data.yaml", predictions=predictions_file(tiled, rotated))
    assert all(value == pytest.approx(100) for value in result["means"].values())
    assert "small vehicle" in (printed := capsys.readouterr().out) and "100.00" in printed and "nan" not in printed
    target, task = tiled / f"merged/val-{tiled.name}", "Task1" if rotated else "Task2"
    assert result["target"] == target
    written = json.loads((target / "predictions.json").read_text())
    assert written[1] == {
        **{"image_id": "0007", "category_id": 2, "bbox": [92, 40, 25, 20], "score": 0.87654},
        **({"poly": [92, 40, 117, 40, 117, 60, 92, 60]} if rotated else {}),
    }
    files = {f.name: f.read_text() for f in (target / task).iterdir()}
    numbers = "92.000 40.000 117.000 40.000 117.000 60.000 92.000 60.000" if rotated else "92.000 40.000 117.000 60.000"
    assert files[f"{task}_small-vehicle.txt"] == f"0007 0.87654 {numbers}\n"
    assert set(files) == {f"{task}_{name}.txt" for name in ("plane", "small-vehicle", "ship")}
    assert files[f"{task}_ship.txt"] == "" and len(files[f"{task}_plane.txt"].splitlines()) == 2
    with zipfile.ZipFile(target / f"{task}.zip") as archive:
        assert {name: archive.read(name).decode() for name in archive.namelist()} == files
    assert pd.read_csv(target / "scores.csv")["objects"].tolist() == [2, 1, 0]


def test_without_pieces_dropped_a_wrong_detection_stays(tiled):
    result = run(tiled / "data.yaml", predictions=predictions_file(tiled), pieces="keep")
    assert len(result["merged"]) == 4


def test_without_ground_truth_there_is_a_submission_all_the_same(tiled):
    (tiled / "objects.csv").unlink()
    result = run(tiled / "data.yaml", predictions=predictions_file(tiled), target=tiled / "there")
    assert result["table"] is None and (tiled / "there/Task2.zip").exists()


@pytest.mark.parametrize("kind", ["yolo26", "yolo26-obb"])
def test_a_detector_is_run_as_ultralytics_runs_it(tiled, kind, monkeypatch):
    batches, real = [], DetectionPredictor.preprocess
    monkeypatch.setattr(DetectionPredictor, "preprocess", lambda self, im: batches.append(len(im)) or real(self, im))
    model = checkpoint(tiled / "best.pt", kind=kind)
    data = read_tiled(tiled / "data.yaml", "val")
    found = detections_of(model, data, imgsz=96, batch=2, device="cpu", conf=1e-4, max_det=7)
    assert batches == [2, 1]
    assert found.rotated == ("obb" in kind) and len(found.tile) > 0
    for row, tile in enumerate(data.tiles["tile"]):
        file = str(tiled / f"images/val/{tile}.png")
        expected = YOLO(str(model)).predict(file, imgsz=96, device="cpu", conf=1e-4, max_det=7, verbose=False)[0]
        boxes = expected.obb.xyxyxyxy.numpy() if found.rotated else rectangles(expected.boxes.xyxy.numpy())
        mine = found.tile == row
        assert found.corners[mine] == pytest.approx(boxes.reshape(-1, 4, 2), abs=1e-2)
        conf = (expected.obb if found.rotated else expected.boxes).conf.numpy()
        assert found.scores[mine] == pytest.approx(conf, abs=1e-5)


def test_an_interrupted_run_goes_on_where_it_was(tiled, monkeypatch):
    monkeypatch.setattr(predictions, "_PART", 1)
    model, real, seen = checkpoint(tiled / "best.pt"), predictions._predict, []
    options = {"imgsz": 96, "device": "cpu", "conf": 1e-4, "max_det": 5, "target": tiled / "there"}

    def stopping(detector, files, start, *rest):
        seen.append(start)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(detector, files, start, *rest)

    monkeypatch.setattr(predictions, "_predict", stopping)
    with pytest.raises(KeyboardInterrupt) as stopped:
        run(tiled / "data.yaml", model, **options)
    assert stopped.value.__notes__ == ["the same command goes on from tile 2 of 3"]
    part = tiled / "there/tiles/00000001.npz"
    part.write_bytes(part.read_bytes()[:100])  # cut short
    merged = run(tiled / "data.yaml", model, **options)["merged"]
    assert seen == [0, 1, 2, 1, 2]
    monkeypatch.setattr(predictions, "_predict", real)
    fresh = run(tiled / "data.yaml", model, **{**options, "target": tiled / "other"})["merged"]
    pd.testing.assert_frame_equal(merged, fresh)
    with pytest.raises(UserError, match="another model, other tiles or settings"):
        run(tiled / "data.yaml", model, **{**options, "conf": 0.5})


def test_a_setting_that_was_refused_is_not_held_against_the_next(tiled):
    options = {"imgsz": 96, "device": "cpu", "target": tiled / "there"}
    model = checkpoint(tiled / "best.pt")
    with pytest.raises(ValueError, match="conf"):
        run(tiled / "data.yaml", model, conf=2.0, **options)
    assert run(tiled / "data.yaml", model, conf=0.5, **options)["target"] == tiled / "there"


def predictions_of(folder, name, score):
    """Ultralytics names the file alike whatever the model."""
    (folder / name).mkdir()
    file = predictions_file(folder).rename(folder / name / "predictions.json")
    file.write_text(file.read_text().replace("0.87654", str(score)))
    return file


def test_the_results_of_two_models_lie_side_by_side(tiled):
    for name, score in (("large", 0.9), ("small", 0.5)):
        result = run(tiled / "data.yaml", predictions=predictions_of(tiled, name, score))
        assert result["target"] == tiled / "merged" / f"val-{name}"
    written = json.loads((tiled / "merged/val-large/predictions.json").read_text())
    assert {row["score"] for row in written} == {0.9}


@pytest.mark.parametrize("before", ["other predictions", "a model", "an earlier version"])
def test_the_result_of_another_file_is_not_replaced(tiled, before):
    data, there = tiled / "data.yaml", tiled / "there"
    mine, model = predictions_of(tiled, "mine", 0.9), checkpoint(tiled / "best.pt")
    if before == "a model":
        run(data, model, imgsz=96, device="cpu", target=there)
    else:
        run(data, predictions=predictions_of(tiled, "other", 0.5), target=there)
    if before == "an earlier version":
        (there / "predictions.sha256").unlink()
    held = tree(there)
    with pytest.raises(UserError, match=r"there' holds what was merged from .*; delete it, or give another DEST"):
        run(data, predictions=mine, target=there)
    assert tree(there) == held
    run(data, predictions=mine, target=tiled / "new")
    run(data, predictions=mine, target=tiled / "new", pieces="keep")
    with pytest.raises(UserError, match="new' holds what was merged from other predictions"):
        run(data, model, imgsz=96, device="cpu", target=tiled / "new")


def test_a_space_in_an_images_name_costs_the_submission_alone(tiled, monkeypatch):
    for table in ("tiles.csv", "objects.csv"):
        (tiled / table).write_text((tiled / table).read_text().replace(",P2,", ",P 2,"))
    logger = Mock()
    monkeypatch.setattr(submit, "LOGGER", logger)
    target = run(tiled / "data.yaml", predictions=predictions_file(tiled), target=tiled / "there")["target"]
    assert "image 'P 2' has a space in its name" in logger.warning.call_args.args[0]
    assert pd.read_csv(target / "scores.csv")["objects"].tolist() == [2, 1, 0]
    assert len(json.loads((target / "predictions.json").read_text())) == 3
    assert not list(target.glob("Task*"))


def test_the_predictions_given_are_not_replaced(tiled):
    given = predictions_file(tiled)
    before = given.read_bytes()
    with pytest.raises(UserError, match="would be replaced by what is merged from it; give another DEST"):
        run(tiled / "data.yaml", predictions=given, target=tiled)
    assert given.read_bytes() == before
    with pytest.raises(UserError, match="mistyped.json' does not exist"):
        run(tiled / "data.yaml", predictions=tiled / "mistyped.json", target=tiled)


def test_what_does_not_fit_is_said(tiled):
    data, given = tiled / "data.yaml", predictions_file(tiled)

    def refused(match, *args, **options):
        with pytest.raises(UserError, match=match):
            run(*args, **options)

    refused("either model", data)
    refused("no tiles for split=test; it has val", data, predictions=given, split="test")
    refused("unknown setting 'epochs'", data, predictions=given, epochs=3)
    for name in ("conf", "iou", "max_det", "imgsz", "batch", "device"):
        refused(f"{name}= is for a model that is run", data, predictions=given, **{name: 1})
    refused("none.yaml' does not exist", tiled / "none.yaml", predictions=given)
    refused("none.pt' does not exist", data, tiled / "none.pt")
    refused("none.json' does not exist", data, predictions=tiled / "none.json")
    wrong = checkpoint(tiled / "wrong.pt", {0: "plane", 1: "ship", 2: "small vehicle"})
    refused("'small vehicle' is number 2 in the model and 1", data, wrong)
    (tiled / "images/val/P2__0.png").rename(tiled / "elsewhere.png")
    for name, value in (("batch", 0), ("batch", -1), ("imgsz", -64)):
        refused(f"{name}={value} must be a whole number, 1 or more", data, wrong, **{name: value})
    refused("1 tiles are not in .*P2__0", data, checkpoint(tiled / "best.pt"))
    (tiled / "images/val/P2__0.png").write_bytes(b"no image")
    refused("1 tiles cannot be read, .*P2__0", data, tiled / "best.pt", imgsz=96, device="cpu", target=tiled / "x")
    (tiled / "tiles.csv").unlink()
    refused("no tiles.csv: the data set is not tiled", data, predictions=given)


def test_a_strip_that_no_tile_shows_is_said_where_others_overlap(tiled, monkeypatch):
    logger = Mock()
    monkeypatch.setattr(tile_tables, "LOGGER", logger)
    read_tiled(tiled / "data.yaml", "val")
    assert not logger.warning.called
    table = pd.read_csv(tiled / "tiles.csv", dtype={"image": str})
    table.assign(x=table["x"].replace(60, 40)).to_csv(tiled / "tiles.csv", index=False)
    read_tiled(tiled / "data.yaml", "val")
    assert logger.warning.call_args.args[0].startswith("1 of 2 images are not covered by their tiles")


@pytest.mark.parametrize("file, column", [("tiles.csv", "width"), ("objects.csv", "y4"), ("objects.csv", "difficult")])
def test_a_table_without_a_column_or_with_words_for_numbers_is_said(tiled, file, column):
    table = pd.read_csv(tiled / file, dtype={"image": str})
    table.drop(columns=column).to_csv(tiled / file, index=False)
    with pytest.raises(UserError, match=f"{file}' lacks {column}, .*convert the data set again"):
        read_tiled(tiled / "data.yaml", "val")
    if column != "difficult":
        table.assign(**{column: "many"}).to_csv(tiled / file, index=False)
        with pytest.raises(UserError, match=f"{file}' lacks {column}"):
            read_tiled(tiled / "data.yaml", "val")


def test_a_data_file_without_names_is_said(tiled):
    (tiled / "data.yaml").write_text("val: images/val\n")
    with pytest.raises(UserError, match="has no names of classes"):
        read_tiled(tiled / "data.yaml", "val")


@pytest.mark.parametrize(
    "change, named",
    [
        ({"file_name": "P9__0.png"}, "1 tiles unknown to the split, P9__0"),
        ({"category_id": 4}, "classes that the data set does not have"),
        ({"category_id": 0}, "classes that the data set does not have"),
        ({"bbox": [1, 2, 3]}, "no predictions.json of Ultralytics"),
        ({"score": "high"}, "no predictions.json of Ultralytics"),
        ({"category_id": 2**31 + 1}, "no predictions.json of Ultralytics"),
        ({"bbox": [1, 2, 3, 10**400]}, "no predictions.json of Ultralytics"),
    ],
)
def test_predictions_that_do_not_fit_are_said(tiled, change, named):
    file = predictions_file(tiled)
    rows = json.loads(file.read_text())
    file.write_text(json.dumps([*rows[:2], {**rows[2], **change}]))
    with pytest.raises(UserError, match=named):
        predictions_from_json(file, read_tiled(tiled / "data.yaml", "val"))


def test_numeric_stems_keep_their_zeros_and_no_prediction_at_all_is_allowed(tiled):
    data, file = read_tiled(tiled / "data.yaml", "val"), tiled / "predictions.json"
    data.tiles["tile"] = ["0001", "0002", "0003"]
    row = {"image_id": 2, "file_name": "0002.jpg", "category_id": 1, "bbox": [1, 2, 3, 4], "score": 1}
    file.write_text(json.dumps([row]))
    assert predictions_from_json(file, data).tile.tolist() == [1]
    file.write_text("[]")
    assert len(predictions_from_json(file, data).tile) == 0
