"""The accuracy harness: one row a run, continued where it stopped, never another run's result."""

import csv
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ultralytics import YOLO

from ds2d2_yolo.engine.checkpoints import AtomicPath

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "accuracy.py"
RECIPE = "batch=4,nbs=4,optimizer=AdamW,val=False,plots=False,workers=0,amplifier_epochs=1"


@pytest.fixture
def accuracy(tmp_path, monkeypatch, scenes, teacher, small):
    """Runs the harness with further arguments; returns the CSV's rows."""
    out = tmp_path / "rows.csv"
    monkeypatch.syspath_prepend(SCRIPT.parent)  # as for a script that is run

    def run(*arguments):
        common = ["--data", scenes, "--out", out, "--work", tmp_path / "work", "--student", small, "--imgsz", 96]
        common += ["--teacher", teacher, "--recipe", RECIPE, "--device", "cpu", "--seeds", 0, *arguments]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, common)])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        with open(out, newline="") as file:
            return list(csv.DictReader(file))

    return run


def test_rows_are_added_and_never_mistaken(accuracy, capsys):
    rows = accuracy("--epochs", 1, "--arms", "plain", "ds2d2", "ds2d2-im_high")
    assert [row["arm"] for row in rows] == ["teacher", "plain", "ds2d2", "ds2d2-im_high"]
    assert rows[0]["teacher"] == rows[2]["teacher"] != ""
    taught = ['"distill_final": 0', '"im_high": 0', '"teacher": "T"']
    assert [row["settings"] for row in rows[1:]] == ["{}", f"{{{taught[0]}, {taught[2]}}}", f"{{{', '.join(taught)}}}"]
    head = subprocess.run(["git", "rev-parse", "--short=8", "HEAD"], cwd=SCRIPT.parent, capture_output=True, text=True)
    assert [row["commit"].strip("+") for row in rows] == [head.stdout.strip()] * 4
    assert "ap50 - plain" in capsys.readouterr().out
    assert accuracy("--epochs", 1, "--arms", "plain", "ds2d2", "ds2d2-im_high") == rows
    more = accuracy("--epochs", 2, "--arms", "plain")
    assert [row["epochs"] for row in more] == ["", "1", "1", "1", "2"]
    assert len({row["run"] for row in more}) == 5


def test_it_stops_in_time_and_goes_on(accuracy, tmp_path):
    with pytest.raises(SystemExit, match="goes on from here"):
        accuracy("--epochs", 2, "--arms", "ds2d2", "--minutes", 0)
    assert sorted(path.suffix for path in tmp_path.glob("work/*")) == [".commit", ".minutes"]
    [count] = tmp_path.glob("work/*.minutes")
    count.write_text("7")  # of the pieces before
    count.with_suffix(".commit").write_text("0123abcd")
    *_, row = accuracy("--epochs", 2, "--arms", "ds2d2")
    assert row["epochs"] == "2" and 7 <= float(row["minutes"]) < 12 and row["commit"].startswith("0123abcd..")


def test_checkpoints_now_and_then_change_nothing(accuracy, tmp_path, monkeypatch):
    written, write = [], AtomicPath.write_bytes
    monkeypatch.setattr(AtomicPath, "write_bytes", lambda path, data: written.append(path.name) or write(path, data))
    rows = accuracy("--epochs", 3, "--arms", "plain")
    assert written.count("last.pt") >= 3
    written.clear()
    (tmp_path / "rows.csv").unlink()
    shutil.rmtree(tmp_path / "work")
    again = accuracy("--epochs", 3, "--arms", "plain", "--save-every", 2)
    assert written.count("state-1.pt") == 1 and "state-0.pt" not in written
    assert [{**row, "minutes": ""} for row in again] == [{**row, "minutes": ""} for row in rows]
    with pytest.raises(SystemExit):
        accuracy("--arms", "plain", "--save-every", 2, "--recipe", "batch=4")


def test_a_misspelt_arm_ends_it_at_once(accuracy, tmp_path):
    with pytest.raises(SystemExit, match="unknown arm 'plian'"):
        accuracy("--arms", "plain", "plian")
    assert not list(tmp_path.glob("work/*"))


def test_a_narrower_student_starts_from_every_second_channel(accuracy, tmp_path, large, small):
    state = {name: value.half().float() for name, value in YOLO(large).model.state_dict().items()}  # as it is saved
    torch.save(state, tmp_path / "wide.pt")
    start = runpy.run_path(str(SCRIPT))["start_from"](tmp_path / "wide.pt", small, tmp_path / "start.pt")
    found = YOLO(start).model.state_dict()
    for i in (3, 4):  # the layers before are rounded up to multiples of 8
        assert torch.equal(found[f"model.{i}.conv.weight"], state[f"model.{i}.conv.weight"][::2, ::2])
    assert torch.equal(found["model.0.bn.bias"], state["model.0.bn.bias"][::2])
    rows = accuracy("--epochs", 1, "--arms", "plain", "--student-weights", tmp_path / "wide.pt")
    assert [row["student"] for row in rows] == [f"{small} from wide"]
    torch.save({"state_dict": state}, tmp_path / "nested.pt")
    wide = YOLO(large)
    wide.model.load_state_dict(state)
    wide.save(tmp_path / "checkpoint.pt")
    for file in (tmp_path / "nested.pt", tmp_path / "checkpoint.pt"):
        again = runpy.run_path(str(SCRIPT))["start_from"](file, small, tmp_path / "again.pt")
        assert all(torch.equal(v, found[k]) for k, v in YOLO(again).model.state_dict().items())
    torch.save({f"model.{name}": value for name, value in state.items()}, tmp_path / "renamed.pt")
    with pytest.raises(SystemExit, match="renamed.pt has 0 of .* tensors of .* not of this model"):
        accuracy("--epochs", 2, "--arms", "plain", "--student-weights", tmp_path / "renamed.pt")
