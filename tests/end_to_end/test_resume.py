"""Runs that are cut short, by Ctrl-C or by a full disk, and how they go on."""

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ultralytics import YOLO
from ultralytics.nn.distill_model import DistillationModel
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils import YAML

from ds2d2_yolo import DS2D2Trainer, cli
from ds2d2_yolo.engine.amplifier_trainer import AmplifierTrainer
from ds2d2_yolo.engine.settings import TERMS
from ds2d2_yolo.engine.train import _check_not_begun
from ds2d2_yolo.errors import UserError
from tests.helpers.training import RECIPE, hang_in, listening, one_error, part, resume, rows, same, train, weights

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
OWN = {"ex_low": 0.31, "im_high": 0.11, "wavelet": "db2", "distill_warmup": 2.5, "normalize": "teacher"}


@pytest.fixture
def ctrl_c():
    """Presses Ctrl-C at an event of the trainers of that class; `undo` lets go."""
    with pytest.MonkeyPatch.context() as patch:
        patch.press = lambda kind, event: hang_in(patch, event, lambda trainer: _interrupt(trainer, kind))
        yield patch


def _interrupt(trainer, trainer_class):
    if type(trainer) is trainer_class:
        raise KeyboardInterrupt


@pytest.fixture(scope="session")  # a worker may leave this module for others and come back
def interrupted(tmp_path_factory, scenes, teacher, student):
    """A student's run of 3 epochs that Ctrl-C ended after the first one: run, teacher (its own), exit code, stderr."""
    folder = tmp_path_factory.mktemp("interrupted")
    seen = SimpleNamespace(run=folder / "interrupted", teacher=folder / "teacher.pt")
    shutil.copy(teacher, seen.teacher)
    settings = {"data": scenes, "model": student, "teacher": seen.teacher, "epochs": 3, "amplifier_epochs": 1, **OWN}
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as stderr:
        hang_in(patch, "on_model_save", lambda trainer: _interrupt(trainer, DS2D2Trainer))
        seen.code = train(folder, name="interrupted", **settings)
    seen.stderr = stderr.getvalue()
    return seen


@pytest.fixture
def copied(interrupted, tmp_path):
    """The interrupted run in a folder of the test's own: last, and the settings that make it stay there."""
    shutil.copytree(interrupted.run, tmp_path / "copied")
    last = tmp_path / "copied" / "weights" / "last.pt"
    return SimpleNamespace(run=tmp_path / "copied", last=last, there={"save_dir": tmp_path / "copied"})


# ---- the student


def test_ctrl_c_says_how_to_resume(interrupted):
    last = interrupted.run / "weights" / "last.pt"
    assert interrupted.code == 130
    assert interrupted.stderr == f"ds2d2: interrupted; continue with: python train.py resume={last}\n"
    assert [row["epoch"] for row in rows(interrupted.run)] == [1]


def test_an_interrupted_run_is_a_model(copied, scenes, pictures, capsys):
    """Its last.pt validates, predicts and exports, by Ultralytics alone and by this package."""
    model = YOLO(copied.last)
    assert model.val(data=str(scenes), imgsz=96, workers=0, plots=False, project=str(copied.run)).box.map50 >= 0
    with torch.no_grad():
        expected = load_checkpoint(copied.last)[0].student_model(torch.ones(1, 3, 96, 96))[0]
        torch.testing.assert_close(YOLO(copied.last).model(torch.ones(1, 3, 96, 96))[0], expected)
    assert len(YOLO(copied.last).predict(pictures, imgsz=96, verbose=False)) == len(pictures)
    exported = YOLO(copied.last).export(format="torchscript", imgsz=96)
    torch.testing.assert_close(torch.jit.load(exported)(torch.ones(1, 3, 96, 96))[0], expected[0], rtol=1e-3, atol=1e-3)
    assert cli.val([f"model={copied.last}", f"data={scenes}", "imgsz=96", "workers=0"]) == 0
    assert cli.export([f"model={copied.last}", "format=torchscript", "imgsz=96", f"images={pictures[0]}"]) == 0
    assert "last.torchscript: checked on" in capsys.readouterr().out


def test_a_resumed_run_goes_on_where_it_was(copied, distilled, monkeypatch):
    seen = SimpleNamespace(factor=None)
    hang_in(monkeypatch, "on_train_start", lambda trainer: _note_state(seen, trainer))
    hang_in(monkeypatch, "on_train_batch_end", lambda trainer: _note_factor(seen, trainer))
    saved, checkpoint = load_checkpoint(copied.last)
    assert type(saved) is DistillationModel and saved.teacher_model is None
    state = torch.load(copied.last.with_name("state-0.pt"), weights_only=True)

    assert resume(copied.last) == 0  # where it lies now

    assert same(seen.adapters, part(state["model"], "projector")) and len(seen.adapters) == 2
    assert same(seen.student, part(state["model"], "student_model"))
    assert same(seen.averaged, part(state["ema"], "student_model"))
    for name, value in weights(saved.student_model).items():  # the EMA, in half precision
        torch.testing.assert_close(value.float(), seen.averaged[name].float(), rtol=1e-3, atol=1e-6)
    assert seen.updates == checkpoint["updates"] == 2
    assert seen.balance == saved.ds2d2_balance and seen.balance["scales"].keys() == set(TERMS)
    for index, slots in state["optimizer"]["state"].items():
        for name, value in slots.items():
            assert torch.equal(seen.optimizer["state"][index][name], value)
    assert seen.factor == pytest.approx(1 / OWN["distill_warmup"] * 0.75)  # a third of the way along the cosine
    table, whole = rows(copied.run), rows(distilled.run)
    assert [row["epoch"] for row in table] == [1, 2, 3]
    for row, expected in zip(table, whole, strict=True):
        assert [row[f"lr/pg{i}"] for i in range(3)] == [expected[f"lr/pg{i}"] for i in range(3)]
        assert all(row[f"train/{name}"] > 0 for name in TERMS)
    assert {name: getattr(seen.args, name) for name in OWN} == OWN
    assert OWN.items() <= YAML.load(copied.run / "args.yaml").items()
    assert load_checkpoint(copied.last)[1]["optimizer"] is None  # released


def _note_state(seen, trainer):
    seen.adapters, seen.student = weights(trainer.model.projector), weights(trainer.model.student_model)
    seen.averaged, seen.updates = weights(trainer.ema.ema.student_model), trainer.ema.updates
    seen.balance = trainer.model.balance.state()
    seen.optimizer, seen.args = trainer.optimizer.state_dict(), trainer.args
    seen.optimizer["state"] = {
        index: {name: value.clone() for name, value in state.items()}
        for index, state in seen.optimizer["state"].items()
    }


def _note_factor(seen, trainer):
    seen.factor = seen.factor or trainer.model.balance.factor


def test_resume_from_python_after_the_teacher_has_moved(copied, interrupted, tmp_path, capsys):
    moved = tmp_path / "moved" / "renamed.pt"
    shutil.copytree(interrupted.teacher.parent, moved.parent)
    (moved.parent / "teacher.pt").rename(moved)
    hidden = interrupted.teacher.parent.rename(tmp_path / "hidden")
    try:
        assert resume(copied.last, **copied.there) == 2
        assert f"teacher '{interrupted.teacher}' does not exist" in one_error(capsys)
        YOLO(copied.last).train(trainer=DS2D2Trainer, resume=True, teacher=str(moved), **copied.there)
    finally:
        hidden.rename(interrupted.teacher.parent)
    assert [row["epoch"] for row in rows(copied.run)] == [1, 2, 3]
    assert YAML.load(copied.run / "args.yaml")["teacher"] == str(moved)


def test_another_teacher_is_refused(copied, tmp_path, scenes, small, capsys):
    assert train(tmp_path, name="other", data=scenes, model=small, epochs=1, val=False) == 0
    capsys.readouterr()
    assert resume(copied.last, teacher=tmp_path / "other" / "weights" / "best.pt", **copied.there) == 2
    assert "use amplifier=auto" in one_error(capsys)
    assert load_checkpoint(copied.last)[1]["epoch"] == 0


def test_an_amplifier_lost_on_the_way_is_trained_anew(copied, interrupted, tmp_path, ctrl_c, capsys):
    """And the student goes on, also where that stage was interrupted."""
    elsewhere = shutil.copy(interrupted.teacher, tmp_path / "teacher.pt")
    ctrl_c.press(AmplifierTrainer, "on_model_save")
    assert resume(copied.last, teacher=elsewhere, amplifier="auto", batch=2) == 130
    stage = tmp_path / "copied-amplifier" / "weights" / "last.pt"
    assert capsys.readouterr().err == f"ds2d2: interrupted; continue with: python train.py resume={stage}\n"
    ctrl_c.undo()
    assert resume(stage) == 0
    assert [row["epoch"] for row in rows(copied.run)] == [1, 2, 3]
    args = YAML.load(copied.run / "args.yaml")
    assert (args["teacher"], args["batch"]) == (str(elsewhere), 2)


def test_an_amplifier_trained_beforehand_stays(copied, capsys):
    assert resume(copied.last, amplifier="alongside", **copied.there) == 2
    assert "started with an amplifier trained beforehand: resume it without amplifier=" in one_error(capsys)


def test_a_finished_run_is_not_resumed(distilled, capsys):
    assert resume(distilled.run / "weights" / "last.pt") == 2
    assert "is a finished run; start a new one with model=" in one_error(capsys)
    assert len(rows(distilled.run)) == 3


@pytest.mark.parametrize("event", ["on_train_start", "on_train_batch_end"])
def test_ctrl_c_before_the_first_checkpoint(event, ctrl_c, copied, tmp_path, scenes, teacher, amplifier, small, capsys):
    """The finished first stage is offered, not what an older run left in the student's folder."""
    os.utime(copied.last, (time.time() - 3600,) * 2)
    own = shutil.copy(teacher, tmp_path / "teacher.pt")
    ctrl_c.press(DS2D2Trainer, event)
    settings = {"data": scenes, "model": small, "teacher": own, "epochs": 2, "amplifier_epochs": 1}
    assert train(tmp_path, name="copied", **settings) == 130
    stage = tmp_path / "copied-amplifier" / "weights" / "last.pt"
    assert capsys.readouterr().err == f"ds2d2: interrupted; continue with: python train.py resume={stage}\n"
    _check_not_begun(tmp_path / "copied", stage, load_checkpoint(stage)[1])


def test_ctrl_c_after_the_last_epoch(ctrl_c, tmp_path, scenes, small, capsys):
    ctrl_c.press(DS2D2Trainer, "on_fit_epoch_end")
    assert train(tmp_path, name="run", data=scenes, model=small, epochs=1) == 130
    last = tmp_path / "run" / "weights" / "last.pt"
    assert capsys.readouterr().err == f"ds2d2: interrupted after the last epoch; the trained model is {last}\n"
    assert YOLO(last).predict(torch.zeros(1, 3, 96, 96), verbose=False)


# ---- the first stage


def test_the_first_stage_is_resumed_and_the_student_follows(ctrl_c, tmp_path, scenes, teacher, small, capsys):
    given, moved = tmp_path / "given" / "teacher.pt", tmp_path / "moved" / "teacher.pt"
    given.parent.mkdir()
    shutil.copy(teacher, given)
    ctrl_c.press(AmplifierTrainer, "on_model_save")
    settings = {"data": scenes, "model": small, "epochs": 2, "amplifier_epochs": 3, "imgsz": 100, **OWN}  # becomes 128
    assert train(tmp_path, name="run", teacher=given, **settings) == 130
    last = tmp_path / "run-amplifier" / "weights" / "last.pt"
    assert capsys.readouterr().err == f"ds2d2: interrupted; continue with: python train.py resume={last}\n"
    assert YOLO(last).predict(torch.zeros(1, 3, 96, 96), verbose=False)
    assert not list(tmp_path.rglob("*-amplifier-*.pt"))

    ctrl_c.undo()
    given.parent.rename(moved.parent)
    there = tmp_path / "there"
    there.mkdir()
    last.parents[1].rename(there / "run-amplifier")
    last = there / "run-amplifier" / "weights" / "last.pt"
    with pytest.raises(UserError, match="is of an unfinished amplifier stage; go on with it and the student by"):
        DS2D2Trainer(overrides={"resume": str(last)})
    for wrong in ({"freeze": -1}, {"patience": "abc"}, {"imgsz": [1, 2, 3]}):
        assert resume(last, teacher=moved, **wrong) == 2
        assert next(iter(wrong)) in one_error(capsys)
    elsewhere = tmp_path / "elsewhere.yaml"
    shutil.copy(scenes, elsewhere)
    YAML.save(elsewhere, {**YAML.load(scenes), "path": str(Path(scenes).parent)})
    with listening() as log:
        assert resume(last, teacher=moved, data=elsewhere, patience=7) == 0
    text = "\n".join(log)
    assert "from epoch 2 to 3 total epochs" in text and "stage 1 of 2" not in text
    assert [row["epoch"] for row in rows(there / "run-amplifier")] == [1, 2, 3]
    [kept] = moved.parent.glob("teacher-amplifier-*.pt")
    table = rows(there / "run")
    assert [row["epoch"] for row in table] == [1, 2]
    assert all(row[f"train/{name}"] > 0 for row in table for name in TERMS)
    run = YAML.load(there / "run" / "args.yaml")
    assert OWN.items() <= run.items()
    assert (run["epochs"], run["amplifier"], run["teacher"]) == (2, str(kept), str(moved))
    assert (run["patience"], run["data"]) == (7, str(elsewhere))
    assert YAML.load(there / "run-amplifier" / "args.yaml")["patience"] == 3
    assert train(tmp_path, name="again", teacher=moved, **{**settings, "epochs": 1}) == 0  # finds the amplifier
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "elsewhere.yaml", "moved", "run", "there"]


# ---- as a process


def test_ctrl_c_in_a_terminal(tmp_path, scenes, teacher, amplifier, small):
    settings = {"data": scenes, "model": small, "teacher": teacher, "amplifier": amplifier, "epochs": 10000}
    settings = {**RECIPE, **settings, "project": tmp_path, "name": "run", "val": False}
    command = [sys.executable, ROOT / "train.py", *(f"{key}={value}" for key, value in settings.items())]
    running = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    last = tmp_path / "run" / "weights" / "last.pt"
    try:
        deadline = time.monotonic() + 240
        while not last.exists() and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        _, error = running.communicate(timeout=60)
    finally:
        running.kill()
    assert error == f"ds2d2: interrupted; continue with: python train.py resume={last}\n"
    assert running.returncode == 130
    assert load_checkpoint(last)[1]["optimizer"] is not None
    assert [path.name for path in last.parent.iterdir() if path.suffix == ".partial"] == []
