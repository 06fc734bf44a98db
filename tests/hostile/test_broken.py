"""Files that are no checkpoint, or not the one that is wanted: one line that names them, whatever the door."""

import numpy as np
import pytest
import torch
from ultralytics import YOLO

from tests.helpers.hostile import good, state_dict, truncated

DOORS = ("train model", "train teacher", "train resume", "val model", "export")


def _write(path, content):
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)


FILES = {
    "empty": lambda: b"",
    "text": lambda: b"no checkpoint\n",
    "random": lambda: np.random.default_rng(0).bytes(3000),
    "one byte": lambda: truncated(good(), 1),
    "four bytes": lambda: truncated(good(), 4),
    "hundred bytes": lambda: truncated(good(), 100),
    "a third": lambda: truncated(good(), 1 / 3),
    "nine tenths": lambda: truncated(good(), 0.9),
    "all but the end": lambda: truncated(good(), 0.9999),
    "tensor": lambda: torch.zeros(3),
    "no model": lambda: {"epoch": 3, "train_args": {}},
    "tensor as model": lambda: {**good(), "model": torch.zeros(3)},
    "text as train_args": lambda: {**good(), "train_args": "none"},
    "state dict": state_dict,
    "list": lambda: [1, 2, 3],
}


@pytest.mark.parametrize("name", FILES)
def test_broken_checkpoints(name, enter, tmp_path):
    file = tmp_path / "broken.pt"
    _write(file, FILES[name]())
    for door in DOORS:
        code, line = enter(door, file)
        assert code == 2 and "broken.pt" in line, door
    assert [path.name for path in tmp_path.rglob("*.pt")] == ["broken.pt"]


@pytest.mark.parametrize("door", DOORS)
def test_a_folder(door, enter, tmp_path):
    (tmp_path / "folder.pt").mkdir()
    code, line = enter(door, tmp_path / "folder.pt")
    assert code == 2 and "folder.pt" in line


@pytest.mark.parametrize("family", ["yolo11n-seg", "yolo11n-cls"])
def test_checkpoints_of_another_task(family, enter, tmp_path):
    model = YOLO(f"{family}.yaml").model
    torch.save({**good(), "model": model, "train_args": {"task": model.task}}, tmp_path / "other.pt")
    for door in ("train model", "train teacher", "val model", "export"):
        code, line = enter(door, tmp_path / "other.pt")
        assert code == 2 and any(part in line for part in ("other.pt", "segment", "classify")), door


@pytest.mark.parametrize("name", ["empty", "text", "random"])
@pytest.mark.parametrize("door", ["val model", "val teacher"])
def test_broken_onnx_files(door, name, enter, tmp_path):
    _write(tmp_path / "broken.onnx", FILES[name]())
    code, line = enter(door, tmp_path / "broken.onnx")
    assert code == 2 and "broken.onnx" in line


def test_onnx_files_cut_short(enter, detector, tmp_path):
    whole = tmp_path / "whole.onnx"
    model = torch.nn.Conv2d(3, 5, 3)
    torch.onnx.export(model, torch.zeros(1, 3, 64, 64), str(whole), dynamo=False, input_names=["images"])
    for share in (0.1, 0.5, 0.95):
        content = whole.read_bytes()
        (tmp_path / "short.onnx").write_bytes(content[: int(len(content) * share)])
        code, line = enter("val model", tmp_path / "short.onnx")
        assert code == 2 and "short.onnx" in line
