"""Runs that end in their first stage or before their first checkpoint, and amplifiers that no longer fit the labels."""

import io
import shutil
import threading
from pathlib import Path

import pytest
import torch
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.utils import YAML

from ds2d2_yolo import DS2D2Trainer, cli
from ds2d2_yolo.engine.amplifier_trainer import AmplifierTrainer
from ds2d2_yolo.errors import UserError
from ds2d2_yolo.given import models_of
from tests.helpers.training import RECIPE, hang_in, listening, one_error, resume, rows, train

pytestmark = pytest.mark.slow


@pytest.fixture
def own(teacher, tmp_path):
    """The teacher in a folder of the test's own, without an amplifier beside it."""
    (tmp_path / "own").mkdir()
    return shutil.copy(teacher, tmp_path / "own" / "teacher.pt")


@pytest.fixture
def press(monkeypatch):
    """Presses Ctrl-C at an event of the trainers of that class."""

    def interrupt(trainer, kind):
        if type(trainer) is kind:
            raise KeyboardInterrupt

    return lambda kind, event: hang_in(monkeypatch, event, lambda trainer: interrupt(trainer, kind))


def test_a_stage_is_no_detector(distilled, scenes, capsys):
    """Neither where it is named nor where a pattern meets it beside its student."""
    stage = distilled.run.with_name("distilled-amplifier") / "weights" / "best.pt"
    for command, more in ((cli.val, (f"data={scenes}", "latency=False", f"save_dir={stage.parent}")), (cli.export, ())):
        assert command([f"model={stage}", *more]) == 2
        assert "is of a high-frequency amplifier's stage and no detector" in one_error(capsys)
    with listening() as log:
        assert models_of(f"{distilled.run}*/weights/best.pt") == [str(distilled.best)]
    assert log == [f"left out, amplifiers or of their training, and no detectors: {stage}"]
    with pytest.raises(UserError, match="does not exist"):
        models_of(f"{distilled.run}-*/weights/best.pt")


def test_ctrl_c_before_the_first_checkpoint_of_the_first_stage(press, tmp_path, scenes, own, small, capsys):
    press(AmplifierTrainer, "on_train_batch_end")
    assert train(tmp_path / "runs", name="run", data=scenes, model=small, teacher=own, plots=True) == 130
    assert capsys.readouterr().err == "ds2d2: interrupted before the first checkpoint; start the same command again\n"
    assert not (tmp_path / "runs").exists()


def test_from_python_ctrl_c_in_the_first_stage_says_how_to_go_on(press, tmp_path, scenes, own, small):
    """The student's folder stays, empty as it is: another run of that name would write over the first stage."""
    press(AmplifierTrainer, "on_model_save")
    settings = {**RECIPE, "data": str(scenes), "teacher": str(own), "project": str(tmp_path / "runs"), "name": "run"}
    with pytest.raises(KeyboardInterrupt) as raised:
        YOLO(small).train(trainer=DS2D2Trainer, amplifier_epochs=2, **settings)
    last = tmp_path / "runs" / "run-amplifier" / "weights" / "last.pt"
    assert str(raised.value) == f"interrupted; continue with: python train.py resume={last}"
    assert last.exists()
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["run", "run-amplifier"]


def test_a_stage_that_is_over_is_not_lost(press, monkeypatch, tmp_path, scenes, own, small, capsys):
    """Neither where its closing validation is interrupted, nor where the student's first epoch is."""
    call, stopped = DetectionValidator.__call__, []

    def stop(self, trainer=None, model=None):
        if trainer is None and not stopped:
            stopped.append(model)
            raise KeyboardInterrupt
        return call(self, trainer, model)

    monkeypatch.setattr(DetectionValidator, "__call__", stop)
    settings = {"name": "run", "data": scenes, "model": small, "teacher": own, "epochs": 1, "amplifier_epochs": 2}
    with monkeypatch.context() as patch:
        hang_in(patch, "on_model_save", _interrupt)
        assert train(tmp_path / "runs", **settings) == 130
    stage = tmp_path / "runs/run-amplifier/weights/last.pt"
    told = f"ds2d2: interrupted; continue with: python train.py resume={stage}\n"
    assert capsys.readouterr().err == told
    assert resume(stage) == 130 and len(stopped) == 1
    assert capsys.readouterr().err == told
    (amplifier,) = own.parent.glob("teacher-amplifier-*.pt")
    before = amplifier.read_bytes()
    with monkeypatch.context() as patch:
        hang_in(patch, "on_train_batch_end", _interrupt)
        assert resume(stage) == 130
    assert "start the same command again" in capsys.readouterr().err
    with listening() as log:
        assert resume(stage) == 0
    assert not any("stage 1 of 2" in line for line in log) and len(rows(stage.parents[1])) == 2
    assert torch.load(io.BytesIO(before))["head"].keys() == torch.load(amplifier)["head"].keys()
    assert (tmp_path / "runs/run/weights/best.pt").is_file() and len(rows(tmp_path / "runs/run")) == 1
    student = (tmp_path / "runs/run/weights/best.pt").read_bytes()
    for file in (stage, Path(shutil.copy(stage, tmp_path / "backup.pt"))):  # which knows where it comes from
        assert resume(file) == 2
        assert "is of a stage whose student is on its way or trained" in one_error(capsys)
    assert (tmp_path / "runs/run/weights/best.pt").read_bytes() == student
    older = torch.load(stage, weights_only=False)
    del older["train_args"]["student_run"]
    torch.save(older, tmp_path / "older.pt")
    assert resume(tmp_path / "older.pt") == 2
    assert "is of a stage that is over; start the command again that began it" in one_error(capsys)


def _interrupt(_):
    raise KeyboardInterrupt


def retrained(file):
    """Another training's weights in a teacher's file."""
    checkpoint = torch.load(file, weights_only=False)
    with torch.no_grad():
        next(checkpoint["model"].parameters()).add_(0.5)
    torch.save(checkpoint, file)


def test_an_amplifier_is_kept_for_the_teacher_that_it_was_trained_for(press, tmp_path, scenes, own, small, capsys):
    with pytest.MonkeyPatch.context() as patch:
        hang_in(patch, "on_model_save", _interrupt)
        settings = {"name": "run", "data": scenes, "model": small, "teacher": own, "epochs": 1, "amplifier_epochs": 2}
        assert train(tmp_path / "runs", **settings) == 130
    capsys.readouterr()
    retrained(own)
    assert resume(tmp_path / "runs/run-amplifier/weights/last.pt") == 2
    assert f"teacher '{own}' is not the one that this stage began with" in one_error(capsys)
    with pytest.MonkeyPatch.context() as patch:  # as by a training of the teacher that is still on its way
        hang_in(patch, "on_train_epoch_end", lambda trainer: type(trainer) is AmplifierTrainer and retrained(own))
        assert train(tmp_path / "runs", **{**settings, "name": "other", "amplifier_epochs": 1}) == 2
    assert f"teacher '{own}' has changed while its amplifier was trained" in one_error(capsys)
    assert not list(own.parent.glob("*-amplifier-*.pt")) and list(
        tmp_path.glob("runs/other-amplifier/**/*-amplifier-*")
    )


def test_labels_that_have_changed_get_an_amplifier_of_their_own(tmp_path, scenes, own, small):
    shutil.copytree(scenes.parent, tmp_path / "data", ignore=shutil.ignore_patterns("*.cache"))
    settings = {"model": small, "teacher": own, "epochs": 1, "amplifier_epochs": 1, "val": False}

    def stages(data):
        with listening() as log:
            assert train(tmp_path / "runs", name="run", data=data, **settings) == 0
        return sum("stage 1 of 2" in line for line in log)

    data = tmp_path / "data" / "data.yaml"
    data.write_text("".join(line for line in scenes.read_text().splitlines(True) if not line.startswith("path:")))
    assert stages(scenes) == 1
    assert stages(data) == 0  # a copy
    label = sorted((tmp_path / "data" / "labels" / "train").iterdir())[0]
    label.write_text("".join(label.read_text().splitlines(True)[1:]))
    assert stages(data) == 1
    assert stages(data) == stages(scenes) == 0  # both are kept


@pytest.mark.parametrize(("event", "plots"), [("on_train_batch_end", False), ("on_fit_epoch_end", True)])
def test_a_run_whose_folder_is_removed_makes_it_again(event, plots, monkeypatch, tmp_path, scenes, own, small):
    """What was in it is gone; nothing that comes after it is lost, and the run can be resumed."""
    removed = []

    def remove(trainer):
        if type(trainer) is DS2D2Trainer and not removed:
            removed.append(trainer.save_dir)
            for thread in threading.enumerate():
                if "(plot_" in thread.name:  # draws into the folder
                    thread.join(timeout=60)
            shutil.rmtree(trainer.save_dir)

    hang_in(monkeypatch, event, remove)
    with monkeypatch.context() as patch:
        hang_in(patch, "on_model_save", _interrupt_after_the_second)
        settings = {"name": "run", "data": scenes, "model": small, "teacher": own, "im_high": 0, "epochs": 3}
        assert train(tmp_path / "runs", plots=plots, **settings) == 130
    run = tmp_path / "runs/run"
    assert removed == [run]
    assert {path.name for path in (run / "weights").iterdir()} >= {"last.pt", "state-1.pt"}
    assert resume(run / "weights/last.pt") == 0
    assert {path.name for path in (run / "weights").iterdir()} == {"last.pt", "best.pt"}
    assert [row["epoch"] for row in rows(run)][-1] == 3
    assert YOLO(run / "weights/best.pt").names == YOLO(own).names


def _interrupt_after_the_second(trainer):
    if trainer.epoch == 1:
        raise KeyboardInterrupt


def test_an_amplifier_named_takes_the_place_of_the_rest_of_its_stage(press, tmp_path, scenes, own, small, monkeypatch):
    more = {"data": scenes, "model": small, "teacher": own, "epochs": 1, "val": False}
    assert train(tmp_path / "first", name="run", amplifier_epochs=1, **more) == 0
    [ready] = Path(own).parent.glob("*-amplifier-*.pt")
    ready = ready.rename(tmp_path / "ready.pt")
    press(AmplifierTrainer, "on_model_save")
    assert train(tmp_path / "runs", name="run", amplifier_epochs=3, **more) == 130
    last, seen = tmp_path / "runs/run-amplifier/weights/last.pt", []
    hang_in(monkeypatch, "on_train_start", lambda trainer: seen.append((type(trainer), trainer.args.amplifier)))
    assert resume(last, amplifier=tmp_path / "none.pt") == 2 and not seen
    assert resume(last, amplifier=ready) == 0
    assert seen == [(DS2D2Trainer, str(ready))]
    assert [row["epoch"] for row in rows(tmp_path / "runs/run")] == [1]


def test_a_pattern_passes_over_what_is_no_detector(tmp_path):
    names = ("best.pt", "best-amplifier-0123abcdef.pt", "amplifier.pt", "state-12.pt", "my-amplifier.pt", "estate-1.pt")
    for name in names:
        (tmp_path / name).touch()
    with listening() as log:
        found = models_of(f"{tmp_path}/*.pt")
    assert [Path(file).name for file in found] == ["best.pt", "estate-1.pt", "my-amplifier.pt"]
    assert len(log) == 1 and log[0].startswith("left out, amplifiers or of their training, and no detectors: ")
    assert models_of(f"{tmp_path}/amplifier.pt") == [f"{tmp_path}/amplifier.pt"]  # named: what it is will be said


def test_a_recipe_from_a_run_that_was_resumed_begins_as_it_began(tmp_path, scenes, small, teacher, monkeypatch, capsys):
    """Not from its weights, nor with the amplifier that it had found."""
    students = []

    def stop(trainer):
        if type(trainer) is DS2D2Trainer and not students:
            students.append(trainer)
            raise KeyboardInterrupt

    hang_in(monkeypatch, "on_model_save", stop)
    more = {"teacher": teacher, "epochs": 2, "amplifier_epochs": 1}
    assert train(tmp_path, name="run", data=scenes, model=small, **more) == 130
    assert resume(tmp_path / "run/weights/last.pt") == 0
    cfg, given = tmp_path / "run/args.yaml", []
    kept = YAML.load(cfg)
    assert kept["model"] == str(tmp_path / "run/weights/last.pt") and kept["amplifier"] != "auto"
    hang_in(monkeypatch, "on_pretrain_routine_start", lambda trainer: given.append(trainer.args) or 1 / 0)
    for begin in (
        lambda: cli.train([f"cfg={cfg}", "name=again"]),
        lambda: YOLO(small).train(trainer=DS2D2Trainer, cfg=str(cfg), name="python", project=str(tmp_path)),
        lambda: DS2D2Trainer(cfg=cfg, overrides={"name": "third"}).train(),
    ):
        with pytest.raises(ZeroDivisionError):
            begin()
    assert [(args.model, args.amplifier, args.teacher) for args in given] == [(str(small), "auto", str(teacher))] * 3
    YAML.save(cfg, {key: value for key, value in kept.items() if key != "begun_with"})  # of an older version
    capsys.readouterr()
    assert cli.train([f"cfg={cfg}", "name=again"]) == 2
    assert "does not say with which model it began: name model=" in one_error(capsys)
    with pytest.raises(ZeroDivisionError):
        cli.train([f"cfg={cfg}", "name=again", f"model={small}"])
