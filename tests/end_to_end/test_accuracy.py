"""The accuracy harness: one row a run, continued where it stopped, never another run's result."""

import csv
import runpy
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "accuracy.py"
RECIPE = "batch=4,nbs=4,optimizer=AdamW,val=False,plots=False,workers=0,amplifier_epochs=1"


@pytest.fixture
def accuracy(tmp_path, monkeypatch, scenes, teacher, small):
    """Runs the harness with further arguments; returns the CSV's rows."""
    out = tmp_path / "rows.csv"

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
    assert [row["arm"] for row in rows] == ["plain", "ds2d2", "ds2d2-im_high"]
    assert [row["settings"] for row in rows] == ["{}", '{"teacher": "T"}', '{"teacher": "T", "im_high": 0}']
    assert "ap50 - plain" in capsys.readouterr().out
    assert accuracy("--epochs", 1, "--arms", "plain", "ds2d2", "ds2d2-im_high") == rows
    more = accuracy("--epochs", 2, "--arms", "plain")
    assert [row["epochs"] for row in more] == ["1", "1", "1", "2"]
    assert len({row["run"] for row in more}) == 4


def test_it_stops_in_time_and_goes_on(accuracy, tmp_path):
    with pytest.raises(SystemExit, match="goes on from here"):
        accuracy("--epochs", 2, "--arms", "ds2d2", "--minutes", 0)
    assert not list(tmp_path.glob("work/*"))
    assert [row["epochs"] for row in accuracy("--epochs", 2, "--arms", "ds2d2")] == ["2"]


def test_a_misspelt_arm_ends_it_at_once(accuracy, tmp_path):
    with pytest.raises(SystemExit, match="unknown arm 'plian'"):
        accuracy("--arms", "plain", "plian")
    assert not list(tmp_path.glob("work/*"))
