"""The demonstration from beginning to end, with a few small scenes and one epoch."""

import csv

import pytest
from PIL import Image

from ds2d2_yolo import cli, demo
from ds2d2_yolo.report import cost, latency
from tests.helpers.training import SHARES, TERMS
from tests.helpers.training import rows as rows_of


@pytest.mark.slow
def test_demo_leaves_table_student_onnx_and_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cost, "peak_memory", lambda *_, **__: 12.5)  # a fresh process for each model
    monkeypatch.setattr(latency, "WARM_UP_S", 0)
    scenes = {"train": 8, "val": 4, "size": 96}
    small = {"epochs": 1, "imgsz": 96, "batch": 4, "amplifier_epochs": 1, "plots": False}
    demo.run(scenes=scenes, **small)
    printed = capsys.readouterr().out
    root = tmp_path / "runs" / "demo"
    with open(root / "comparison.csv", newline="") as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["teacher", "plain student", "DS2D2 student"]
    assert float(rows["teacher"]["parameters"]) > 2 * float(rows["DS2D2 student"]["parameters"])
    assert rows["plain student"]["parameters"] == rows["DS2D2 student"]["parameters"]
    for name in ("AP50", "AP50-95", "APsmall", "parameters"):
        assert name in printed
    assert (root / "ds2d2" / "weights" / "best.onnx").stat().st_size > 100_000
    with Image.open(root / "onnx_detections.jpg") as picture:
        assert picture.height == 960 < picture.width  # the legend
    assert "checked on" in printed
    with_teacher, without = rows_of(root / "ds2d2"), rows_of(root / "plain")
    own = {*SHARES, *(f"train/{name}" for name in TERMS)}
    assert len(with_teacher) == len(without) == len(rows_of(root / "ds2d2-amplifier")) == 1
    assert all(with_teacher[0][name] > 0 for name in own)
    assert without[0].keys() == with_teacher[0].keys() - own
    page = (root / "report" / "report.html").read_text(encoding="utf-8")
    assert "ds2d2" in page and str(root / "report" / "report.html") in printed


def test_train_without_arguments_runs_the_demo(monkeypatch):
    calls = []
    monkeypatch.setattr(demo, "run", lambda: calls.append("demo"))
    assert cli.train([]) == 0
    assert calls == ["demo"]
