"""A run that is killed over and over and resumed each time ends as one that never was."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ds2d2_yolo.engine.runs import finished
from tests.helpers import killing
from tests.helpers.training import RECIPE, listening, resume, rows, train

ROOT = Path(__file__).resolve().parents[2]
# Each resumption gets as far as its moment; epochs have two batches. Four in the amplifier's stage, then the student's
MOMENTS = (
    "save:student-amplifier/weights/last:1",
    "batch:3",
    "save:student-amplifier/weights/last:1",  # the second epoch's
    "save:student/weights/last:1",
    "batch:3",
    "save:student/weights/state:1",
    "batch:2",
    "save:student/weights/last:1",
    "batch:3",
    "save:student/weights/last:1",  # the third epoch's: what is left is the second's
)
# Steps that do not fall together with epochs, images drawn from those last read, and the warm-up's changing pace
LONG = {"epochs": 4, "nbs": 12, "warmup_epochs": 2, "close_mosaic": 1, "amplifier_epochs": 2, "scale": 0.5}


def launch(arguments):
    command = [sys.executable, "-m", "tests.helpers.killing", json.dumps(arguments), "none"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, **quiet)


@pytest.fixture
def start(tmp_path):
    """The exit code of a whole run, which ends well or is killed."""

    def run(arguments, moment="none"):
        code = killing.start(arguments, moment, tmp_path / "printed")
        assert code in (0, -signal.SIGKILL), (tmp_path / "printed").read_text()[-2000:]
        return code

    return run


def arguments(project, **settings):
    return [f"{key}={value}" for key, value in {**RECIPE, **LONG, "project": project, **settings}.items()]


def final(run):
    """Every tensor of the released weights."""
    checkpoint = torch.load(run / "weights" / "last.pt", weights_only=False)
    return checkpoint["model"].state_dict()


def newest(project):
    """The checkpoint to go on from: the student's, else the amplifier stage's; None where neither is under way."""
    for name in ("student", "student-amplifier"):
        path = project / name / "weights" / "last.pt"
        if path.exists() and not finished(torch.load(path, weights_only=False)):
            return path
    return None


def epoch_of(last):
    """The epoch, from 0 on, after which a checkpoint was saved."""
    return torch.load(last, weights_only=False)["epoch"]


@pytest.mark.slow
def test_killed_ten_times_ends_with_the_same_weights(tmp_path, scenes, large, small, start, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "whole").mkdir()
    assert train(tmp_path, model=large, data=scenes, name="teacher", epochs=1) == 0
    teacher = tmp_path / "teacher/weights/best.pt"
    for name in ("whole", "killed"):  # the amplifier is kept beside the teacher, so each has one of its own
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "teacher.pt").write_bytes(teacher.read_bytes())
    common = {"model": small, "data": scenes, "name": "student"}
    assert start(arguments(tmp_path / "whole", teacher=tmp_path / "whole/teacher.pt", **common)) == 0

    project, went_on = tmp_path / "killed", []
    first = arguments(project, teacher=project / "teacher.pt", **common)
    for moment in MOMENTS:
        last = newest(project)
        went_on.append(last and f"{last.parts[-3]} {epoch_of(last)}")
        assert start([f"resume={last}"] if last else first, moment) == -signal.SIGKILL, moment
    stage, student = "student-amplifier 0", "student 0"
    assert went_on == [None, None, stage, stage, None, student, student, student, student, "student 1"]
    last = newest(project)
    assert last.parts[-3] == "student" and epoch_of(last) == 1
    process = launch([f"resume={last}"])  # an interpreter that shares nothing with those before
    error = process.communicate()[1]
    assert process.returncode == 0, error[-2000:]
    expected, found = (final(tmp_path / name / "student") for name in ("whole", "killed"))
    assert expected.keys() == found.keys()
    different = [name for name in expected if not torch.equal(expected[name], found[name])]
    assert different == []
    assert [row["epoch"] for row in rows(project / "student")] == [1, 2, 3, 4]
    leftovers = [path.name for path in (project / "student/weights").iterdir()]
    assert sorted(leftovers) == ["best.pt", "last.pt"]


@pytest.mark.slow
def test_sigterm_says_how_to_resume(tmp_path, scenes, small):
    process = launch(arguments(tmp_path, model=small, data=scenes, name="student", epochs=200))
    try:
        deadline = time.time() + 120
        while not (tmp_path / "student/weights/last.pt").exists():
            assert process.poll() is None and time.time() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        error = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 130
    last = tmp_path / "student/weights/last.pt"
    assert error.splitlines()[-1] == f"ds2d2: interrupted; continue with: python train.py resume={last}"


@pytest.mark.slow
def test_without_its_state_a_run_goes_on_in_half_precision_and_says_so(tmp_path, scenes, small, start):
    made = arguments(tmp_path, model=small, data=scenes, name="student", exact=False)
    assert start(made, "batch:5") == -signal.SIGKILL
    weights = tmp_path / "student/weights"
    assert sorted(path.name for path in weights.iterdir()) == ["best.pt", "last.pt"]
    with listening() as lines:
        assert resume(weights / "last.pt") == 0
    assert any("state-1.pt is not beside" in line for line in lines)
