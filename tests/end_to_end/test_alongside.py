"""Students whose high-frequency amplifier learns in the same steps: what such runs leave, and how they go on."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from ultralytics.nn.tasks import load_checkpoint

from ds2d2_yolo import cli
from ds2d2_yolo.distill.levels import detect_head
from ds2d2_yolo.distill.teacher import load_teacher
from ds2d2_yolo.engine.amplifier_trainer import amplifier_head
from ds2d2_yolo.engine.trainer import DS2D2Trainer
from tests.helpers.launching import ROOT, torchrun
from tests.helpers.training import RECIPE, hang_in, listening, one_error, packages, resume, rows, same, train, weights

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def alongside(tmp_path_factory, scenes, teacher, small):
    """A run of 3 epochs; its settings, log, and a copy of its folder as it was after the first epoch."""
    folder = tmp_path_factory.mktemp("alongside")
    shutil.copy(teacher, folder / "teacher.pt")
    seen = SimpleNamespace(run=folder / "run", cut=folder / "cut", teacher=folder / "teacher.pt")
    settings = {"data": scenes, "model": small, "teacher": seen.teacher, "epochs": 3, "balance_interval": 1}

    def note(trainer):
        if trainer.epoch == 0:
            shutil.copytree(seen.run, seen.cut)

    with pytest.MonkeyPatch.context() as patch, listening() as seen.log:
        hang_in(patch, "on_model_save", note)
        assert train(folder, name="run", amplifier="alongside", **settings) == 0
    return seen


def test_one_stage_and_no_other_files(alongside):
    assert not any("stage 1" in line for line in alongside.log)
    assert sorted(p.name for p in alongside.run.parent.iterdir()) == ["cut", "run", "teacher.pt"]
    assert sorted(p.name for p in (alongside.run / "weights").iterdir()) == ["amplifier.pt", "best.pt", "last.pt"]
    table = rows(alongside.run)
    assert all(row["train/amplifier"] > 0 and row["train/im_high"] > 0 for row in table)
    assert "val/amplifier" not in table[0]


def test_the_amplifier_has_learned_and_is_kept_with_its_rating(alongside):
    (line,) = (line for line in alongside.log if "amplifier on high frequencies alone: AP50 0." in line)
    assert line.endswith(f"kept as {alongside.run / 'weights' / 'amplifier.pt'}")
    teacher = load_teacher(alongside.teacher)
    head = amplifier_head(alongside.run / "weights" / "amplifier.pt", teacher, "haar", "zero")
    began = weights(detect_head(teacher))
    moved = {name for name, value in weights(head).items() if not torch.equal(value, began[name].float())}
    assert {"cv2.0.0.conv.weight", "cv3.2.2.bias", "cv3.0.0.bn.running_var"} <= moved
    assert not any("dfl" in name for name in moved)


def test_no_released_student_holds_it(alongside):
    """An unfinished run's checkpoint does, in Ultralytics' classes."""
    for name in ("best", "last"):
        student = load_checkpoint(alongside.run / "weights" / f"{name}.pt")[0]
        assert not any("amplifier" in key for key in student.state_dict())
    unfinished = alongside.cut / "weights" / "last.pt"
    assert "ds2d2_yolo" not in packages(unfinished)
    assert any(key.startswith("amplifier.model.head") for key in load_checkpoint(unfinished)[0].state_dict())


def test_resumed_it_ends_the_same(alongside, tmp_path):
    shutil.copytree(alongside.cut, tmp_path / "run")
    assert resume(tmp_path / "run" / "weights" / "last.pt", save_dir=tmp_path / "run") == 0
    one, other = (load_checkpoint(run / "weights" / "last.pt")[0] for run in (alongside.run, tmp_path / "run"))
    assert same(weights(one), weights(other))
    one, other = (
        torch.load(run / "weights" / "amplifier.pt", weights_only=True) for run in (alongside.run, tmp_path / "run")
    )
    assert same(one.pop("head"), other.pop("head")) and one == other


def test_it_cannot_be_changed_on_the_way(alongside, tmp_path, capsys):
    shutil.copytree(alongside.cut, tmp_path / "run")
    last = tmp_path / "run" / "weights" / "last.pt"
    given = alongside.run / "weights" / "amplifier.pt"
    assert resume(last, save_dir=tmp_path / "run", amplifier=given) == 2
    assert "started with an amplifier that learns alongside: resume it without amplifier=" in one_error(capsys)


def test_explain_finds_it(alongside, pictures, tmp_path, capsys):
    best = alongside.run / "weights" / "best.pt"
    assert cli.val([f"explain={pictures[0]}", f"model={best}", f"save_dir={tmp_path}"]) == 0
    assert str(alongside.run / "weights" / "amplifier.pt") in capsys.readouterr().out


def test_another_run_takes_it(alongside, scenes, small, tmp_path, monkeypatch):
    given = alongside.run / "weights" / "amplifier.pt"
    kinds = []
    hang_in(monkeypatch, "on_train_start", lambda trainer: kinds.append((type(trainer), trainer.model.amplifier)))
    settings = {"data": scenes, "model": small, "teacher": alongside.teacher, "epochs": 1, "val": False}
    assert train(tmp_path, name="run", amplifier=given, **settings) == 0
    assert kinds == [(DS2D2Trainer, None)]


def test_several_processes_and_a_student_from_its_teacher(alongside, scenes, small, tmp_path):
    settings = {"data": scenes, "model": small, "teacher": alongside.teacher, "epochs": 2, "project": tmp_path}
    settings |= {**RECIPE, "name": "run", "amplifier": "alongside", "inherit": True}
    done = torchrun(2, ROOT / "train.py", *(f"{key}={value}" for key, value in settings.items()))
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout + done.stderr
    assert said.count("amplifier on high frequencies alone: AP50 0.") == 1
    assert "100% of the student's parameters start from the teacher's" in said
    assert all(row["train/amplifier"] > 0 for row in rows(tmp_path / "run"))
    assert sorted(p.name for p in (tmp_path / "run" / "weights").iterdir()) == ["amplifier.pt", "best.pt", "last.pt"]
