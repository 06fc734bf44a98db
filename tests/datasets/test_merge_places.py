"""The merge command: where it looks, where it writes, and what it leaves alone."""

import errno
import json

import numpy as np
import pytest
import yaml
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionPredictor

from ds2d2_yolo import paths
from ds2d2_yolo.datasets import submit, tile_tables
from ds2d2_yolo.datasets.submit import run
from ds2d2_yolo.errors import UserError
from tests.datasets.downloads import tree
from tests.datasets.test_submit import NAMES, checkpoint, predictions_file, tiled  # noqa: F401  a fixture among them
from tests.helpers.checkpoints import narrow_detector, save_checkpoint


@pytest.fixture
def elsewhere(tiled, tmp_path_factory, monkeypatch):  # noqa: F811
    """A data file apart from its tiles, which it names as data/dota.yaml does."""
    folder = tmp_path_factory.mktemp("elsewhere")
    data = {"path": tiled.name, **yaml.safe_load((tiled / "data.yaml").read_text())}
    (folder / "dota.yaml").write_text(yaml.safe_dump(data))
    monkeypatch.setattr(tile_tables, "DATASETS_DIR", folder / "none")
    return folder / "dota.yaml"


@pytest.mark.parametrize("where", ["working directory", "datasets folder", "beside the data file"])
def test_the_tiles_are_found_where_training_finds_them(tiled, elsewhere, monkeypatch, where):  # noqa: F811
    given = predictions_file(tiled)
    if where == "working directory":
        monkeypatch.chdir(tiled.parent)
    elif where == "datasets folder":
        monkeypatch.setattr(tile_tables, "DATASETS_DIR", tiled.parent)
    else:
        elsewhere = elsewhere.rename(tiled.parent / "dota.yaml")
    result = run(elsewhere, predictions=given)
    assert result["table"]["objects"].sum() == 3
    assert result["target"].parent == elsewhere.parent / "merged"


def test_a_shipped_data_file_writes_into_the_data_set(tiled, elsewhere, monkeypatch):  # noqa: F811
    for module in (paths, submit):
        monkeypatch.setattr(module, "DATA", elsewhere.parent)
    monkeypatch.setitem(paths._FOLDERS, "data", (elsewhere.parent,))
    monkeypatch.setattr(tile_tables, "DATASETS_DIR", tiled.parent)
    result = run("dota.yaml", predictions=predictions_file(tiled))
    assert result["target"].parent == tiled / "merged"


def test_a_folder_that_is_not_there_is_said(elsewhere, tiled):  # noqa: F811
    with pytest.raises(UserError, match=rf"says path: {tiled.name}, which does not exist; convert the data set first"):
        run(elsewhere, predictions=predictions_file(tiled))


def test_a_foreign_result_is_not_replaced_by_a_models(tiled):  # noqa: F811
    model, there = checkpoint(tiled / "best.pt"), tiled / "there"
    there.mkdir()
    predictions_file(there)
    before = tree(there)
    with pytest.raises(UserError, match="there/predictions.json' was not merged from a model's detections"):
        run(tiled / "data.yaml", model, imgsz=96, device="cpu", target=there)
    assert tree(there) == before


def test_a_model_that_is_missing_leaves_no_folder(tiled):  # noqa: F811
    with pytest.raises(UserError, match="none.pt' does not exist"):
        run(tiled / "data.yaml", tiled / "none.pt")
    assert not (tiled / "merged").exists()


def test_a_full_disk_says_that_the_command_goes_on(tiled, monkeypatch):  # noqa: F811
    model, there = checkpoint(tiled / "best.pt"), tiled / "there"

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        with pytest.raises(UserError, match="there': the disk is full; the same command goes on from here"):
            run(tiled / "data.yaml", model, imgsz=96, device="cpu", target=there)
    assert [path.name for path in (there / "tiles").iterdir()] == ["settings.json"]
    run(tiled / "data.yaml", model, imgsz=96, device="cpu", target=there)


def test_a_file_for_any_size_runs_at_that_of_its_export(tiled, monkeypatch):  # noqa: F811
    model = narrow_detector(imgsz=96)
    model.names = NAMES
    file = YOLO(str(save_checkpoint(tiled / "best.pt", model))).export(
        format="onnx", imgsz=96, dynamic=True, simplify=False, device="cpu"
    )
    shapes, real = [], DetectionPredictor.preprocess
    monkeypatch.setattr(
        DetectionPredictor, "preprocess", lambda self, im: shapes.append(real(self, im).shape) or real(self, im)
    )
    found = run(tiled / "data.yaml", file, device="cpu", conf=1e-4, target=tiled / "there")
    assert {tuple(shape[2:]) for shape in shapes} == {(96, 96)}
    assert json.loads((tiled / "there/tiles/settings.json").read_text())["imgsz"] == 96
    assert set(found["merged"]["class"]) <= set(NAMES)
