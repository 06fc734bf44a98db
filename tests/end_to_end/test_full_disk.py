"""Where a disk fills up while checkpoints are written, the last good ones stay."""

import re
import resource
from types import SimpleNamespace

import pytest
import torch
from ultralytics import YOLO
from ultralytics.nn.tasks import load_checkpoint

from ds2d2_yolo import DS2D2Trainer
from tests.helpers.training import hang_in, one_error, resume, rows, train

pytestmark = pytest.mark.slow


@pytest.fixture
def full_disk(monkeypatch):
    """Once the n-th checkpoint of a student lies there, no file can grow beyond 200 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(after):
        hang_in(monkeypatch, "on_model_save", lambda trainer: _no_room(trainer, after, hard))

    def empty():
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        monkeypatch.undo()

    yield SimpleNamespace(fill=fill, empty=empty)
    empty()


def _no_room(trainer, after, hard):
    if isinstance(trainer, DS2D2Trainer) and trainer.epoch + 1 == after:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))


def _train_on(full_disk, folder, settings):
    full_disk.fill(after=1)
    code = train(folder, name="run", **settings)
    full_disk.empty()
    assert code == 2
    return folder / "run" / "weights" / "last.pt"


def test_no_room_for_a_checkpoint(full_disk, tmp_path, scenes, teacher, amplifier, student, capsys):
    settings = {"data": scenes, "model": student, "teacher": teacher, "amplifier": amplifier, "epochs": 3}
    last = _train_on(full_disk, tmp_path, settings)
    line = one_error(capsys)
    assert "cannot save a checkpoint" in line and f"resume with resume={last} once there is room" in line
    assert sorted(path.name for path in last.parent.iterdir()) == ["best.pt", "last.pt", "state-0.pt"]
    assert YOLO(last).predict(torch.zeros(1, 3, 96, 96), verbose=False)
    assert load_checkpoint(last)[1]["epoch"] == 0
    assert resume(last) == 0
    assert [row["epoch"] for row in rows(tmp_path / "run")] == [1, 2, 3]


def test_no_room_for_the_released_student(full_disk, tmp_path, scenes, teacher, amplifier, student, capsys):
    settings = {"data": scenes, "model": student, "teacher": teacher, "amplifier": amplifier, "epochs": 1}
    last = _train_on(full_disk, tmp_path, settings)
    assert re.search(r"cannot write the stripped .*stays as trained", one_error(capsys))
    assert sorted(path.name for path in last.parent.iterdir()) == ["best.pt", "last.pt"]
    assert YOLO(last).predict(torch.zeros(1, 3, 96, 96), verbose=False)
    assert resume(last) == 2 and "is a finished run" in one_error(capsys)
