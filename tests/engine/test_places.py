"""Files of a run that relative paths name: resumed from another folder, trained from this one."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from ultralytics import YOLO
from ultralytics.utils import DEFAULT_CFG_DICT, YAML

from ds2d2_yolo.datasets.demo import NAMES
from ds2d2_yolo.engine.places import absolute, begun, resolved
from ds2d2_yolo.engine.starts import check_not_written_over, warn_of_pair
from ds2d2_yolo.engine.train import train
from ds2d2_yolo.engine.trainer import DS2D2Trainer
from ds2d2_yolo.errors import UserError
from tests.helpers.checkpoints import save_checkpoint
from tests.helpers.distilling import tiny
from tests.helpers.steps import begin, finish_epoch, step
from tests.helpers.training import hang_in, listening, rows


@pytest.fixture
def home(tmp_path, monkeypatch, data, layout, teacher_pt):
    """A folder with a data set, a teacher and a student in it, where we are."""
    shutil.copytree(Path(data).parent, tmp_path / "home/set")
    shutil.copy(teacher_pt, tmp_path / "home/teacher.pt")
    shutil.copy(layout, tmp_path / "home/student.yaml")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def test_what_is_not_here_is_found_where_the_run_began(tmp_path, monkeypatch):
    for name in ("there/a.yaml", "there/t.pt", "here/t.pt", "here/only.pt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path / "here")
    run = {"data": "a.yaml", "teacher": "t.pt", "amplifier": "only.pt", "pretrained": True, "model": None}
    there = str(tmp_path / "there")
    found = {"data": os.path.join(there, "a.yaml"), "teacher": os.path.join(there, "t.pt")}  # not another run's t.pt
    assert resolved({**run, "begun_in": there}) == found
    assert resolved(run) == resolved({**run, "begun_in": None}) == resolved({**found, "begun_in": there}) == {}
    assert absolute({"teacher": "only.pt", "data": "none.yaml", "amplifier": "auto"}) == {
        "teacher": str(tmp_path / "here/only.pt"),
        "data": "none.yaml",
        "amplifier": "auto",
    }


def test_what_is_named_anew_is_kept_for_the_next_time(home, make, tmp_path, monkeypatch):
    """Resumed elsewhere with another teacher's place, then from a third folder."""
    trainer = finish_epoch(step(begin(make(epochs=3, im_high=0, teacher="teacher.pt"))))
    (home / "teacher.pt").rename(tmp_path / "elsewhere/moved.pt")
    monkeypatch.chdir(tmp_path / "elsewhere")
    resumed = DS2D2Trainer(overrides={"resume": str(trainer.last), "teacher": "moved.pt"})
    assert resumed.args.teacher == str(tmp_path / "elsewhere/moved.pt") and resumed.args.begun_in == str(home)


def test_a_run_that_was_resumed_can_be_begun_again(home, arguments, monkeypatch):
    """With the model and the amplifier that it was begun with, found from elsewhere."""
    Path("amp.pt").touch()
    begun_there = begun({"model": "student.yaml", "amplifier": "amp.pt"})
    whole = {"model": str(home / "student.yaml"), "amplifier": str(home / "amp.pt")}
    monkeypatch.chdir(home.parent / "elsewhere")
    assert begun_there == {"begun_in": str(home), "begun_with": {"model": "student.yaml", "amplifier": "amp.pt"}}
    assert begun({**begun_there, "model": "x/last.pt"}) == {"begun_in": os.getcwd(), "begun_with": whole}
    last = {"model": "x/last.pt", "resume": "x/last.pt", "amplifier": "moved.pt", "task": "detect", "mode": "train"}
    run = {**arguments, "teacher": str(home / "teacher.pt"), **last, **begun_there, "save_dir": "x"}
    YAML.save(Path("args.yaml"), {**DEFAULT_CFG_DICT, **run})
    seen = []
    hang_in(monkeypatch, "on_pretrain_routine_start", lambda trainer: seen.append(trainer.args) or 1 / 0)
    for begin_again in (
        lambda: YOLO(whole["model"]).train(trainer=DS2D2Trainer, cfg="args.yaml"),
        lambda: DS2D2Trainer(cfg="args.yaml").train(),
        lambda: train({"cfg": "args.yaml"}),
    ):
        with pytest.raises(ZeroDivisionError):
            begin_again()
    assert [(args.model, args.amplifier) for args in seen] == [tuple(whole.values())] * 3
    YAML.save(Path("mine.yaml"), {"epochs": 3})
    with pytest.raises(ZeroDivisionError):
        DS2D2Trainer(overrides={**arguments, "cfg": "mine.yaml", "amplifier": None})
    assert seen[-1].amplifier is None and seen[-1].epochs == arguments.get("epochs", 3)


@pytest.mark.parametrize("name", ["my.yaml", "dior.yaml"])  # the second comes with this package, too
def test_from_python_a_run_goes_on_with_its_own_data(home, make, monkeypatch, name):
    (home / "set/data.yaml").rename(home / name)
    described = YAML.load(home / name)
    YAML.save(home / name, {**described, "path": str(home / "set")})
    trainer = finish_epoch(step(begin(make(epochs=3, data=name, teacher=None))))
    monkeypatch.chdir(home.parent / "elsewhere")
    YAML.save(Path(name), {**described, "path": str(home.parent / "other")})
    seen = []
    hang_in(monkeypatch, "on_pretrain_routine_start", lambda trainer: seen.append(trainer.args.data) or 1 / 0)
    model = YOLO(trainer.last)
    with pytest.raises(ZeroDivisionError):
        model.train(trainer=DS2D2Trainer, resume=True)
    assert seen == [str(home / name)]
    moved = shutil.copy(home / name, home.parent / "elsewhere/moved.yaml")
    with pytest.raises(ZeroDivisionError):
        model.train(trainer=DS2D2Trainer, resume=True, data="moved.yaml")
    assert seen[1] == str(moved)
    released = save_checkpoint(home / "best.pt", model.model)
    with pytest.raises(UserError, match="best.pt is a finished run; leave out resume=True and give data="):
        YOLO(released).train(trainer=DS2D2Trainer, resume=True)


def test_a_project_leads_from_here_and_keeps_its_name_for_loggers(home, arguments):
    seen = []

    def stop(trainer):
        seen.append((trainer.args.project, trainer.save_dir))
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        hang_in(patch, "on_pretrain_routine_start", stop)
        train({**arguments, "project": "runs", "name": "run", "im_high": 0})
    assert seen == [("runs", home / "runs/run")]


@pytest.mark.parametrize("kind", ["AmplifierTrainer", "DS2D2Trainer"])
def test_a_run_of_relative_paths_goes_on_from_another_folder(home, arguments, monkeypatch, kind):
    ended = []

    def press(trainer):
        if type(trainer).__name__ == kind and not ended:
            ended.append(trainer.epoch)
            raise KeyboardInterrupt

    hang_in(monkeypatch, "on_model_save", press)
    sizes = {"epochs": 2, "amplifier_epochs": 2, "val": False, "workers": 0}
    given = {"data": f"set/{Path(arguments['data']).name}", "teacher": "teacher.pt", "model": "student.yaml"}
    with pytest.raises(KeyboardInterrupt) as said:
        train({**arguments, **sizes, **given, "project": "runs", "name": "run", "im_high": 0.3})
    last = Path(str(said.value).rpartition("resume=")[2])
    assert last.is_relative_to(home / "runs")
    os.chdir(home.parent / "elsewhere")
    best = train({"resume": str(last)})
    assert best.is_relative_to(home / "runs/run") and [row["epoch"] for row in rows(home / "runs/run")] == [1, 2]
    assert {"teacher", "begun_in"}.isdisjoint(torch.load(best, weights_only=False)["train_args"])  # YOLO(best) loads it
    assert os.listdir(home.parent / "elsewhere") == []


def test_without_a_model_there_is_nothing_to_train(arguments):
    with pytest.raises(UserError, match="no model given"):
        DS2D2Trainer(overrides={key: value for key, value in arguments.items() if key != "model"})


def test_a_teacher_that_is_the_student_or_smaller_is_warned_of(make, teacher_pt, folder):
    wide = save_checkpoint(folder / "wide.pt", tiny((8, 16, 32), width=32, nc=len(NAMES)))
    said = {}
    for name, file in (("same", teacher_pt), ("wide", wide)):
        with listening() as log:
            make(model=str(file), im_high=0).setup_model()
        said[name] = [line for line in log if "are the same file" in line or "are the two swapped?" in line]
    assert len(said["same"]) == len(said["wide"]) == 1
    assert "same file" in said["same"][0] and "swapped" in said["wide"][0]


def named(path, seed=0, **train_args):
    """A detector of the data's classes."""
    model = tiny((8, 16, 32), nc=len(NAMES), seed=seed)
    model.names = dict(enumerate(NAMES))
    return save_checkpoint(path, model, **train_args)


def test_a_teacher_of_nearly_the_students_size_is_no_mistake(make, folder):
    """Its head counts, though the distilled model keeps the teacher without it."""
    files = [named(folder / f"{seed}.pt", seed) for seed in (5, 6)]
    with listening() as log:
        make(model=str(files[0]), teacher=str(files[1]), im_high=0).setup_model()
    assert not [line for line in log if "swapped" in line]


@pytest.mark.parametrize(
    ("trained", "said"), [(64, False), (80, False), (96, True), (48, True), ([48, 64], False), (None, False)]
)
def test_a_teacher_of_another_image_size_is_named(make, folder, trained, said):
    file = named(folder / "other.pt", imgsz=trained)
    with listening() as log:
        make(teacher=str(file), im_high=0, imgsz=64).setup_model()
    assert any(f"was trained at {trained} px and sees images of 64 px here" in line for line in log) == said


@pytest.mark.parametrize("key", ["teacher", "model"])
def test_a_run_is_no_checkpoint(arguments, tmp_path, teacher_pt, key):
    best = tmp_path / "run/weights/best.pt"
    with pytest.raises(UserError, match=f"{key} '{tmp_path}' is a folder; give a checkpoint"):
        train({**arguments, "project": str(tmp_path), key: str(tmp_path)})
    best.parent.mkdir(parents=True)
    shutil.copy(teacher_pt, best)
    with pytest.raises(UserError, match=f"{key} '{best.parents[1]}' is a folder; did you mean '{best}'"):
        train({**arguments, "project": str(tmp_path), key: str(best.parents[1])})


class Sized(nn.Module):
    def __init__(self, parameters, trained_at=None):
        super().__init__()
        self.weight, self.trained_at = nn.Parameter(torch.zeros(parameters)), trained_at


@pytest.mark.parametrize(
    "used, imgsz, said",
    [(640, 640, False), (640, 800, False), (640, 512, False), (640, 801, True), (640, 511, True)]
    + [([640, 480], 640, False), (480, [640, 480], True), (None, 640, False)],
)
def test_a_teacher_that_is_used_to_other_sizes_is_named(used, imgsz, said):
    with listening() as log:
        warn_of_pair("small.yaml", "best.pt", Sized(10), Sized(10, used), imgsz)
    assert any("was trained at" in line for line in log) == said


@pytest.mark.parametrize("parameters, said", [(69, True), (71, False), (1000, False)])
def test_a_teacher_that_is_smaller_is_named(parameters, said):
    with listening() as log:
        warn_of_pair("small.yaml", "best.pt", Sized(100), Sized(parameters), 640)
    assert any("are the two swapped?" in line for line in log) == said


@pytest.mark.parametrize("key", ["teacher", "distill_model", "amplifier"])
def test_what_a_run_would_write_over_is_refused(tmp_path, key):
    file = tmp_path / "run" / "weights" / "best.pt"
    check_not_written_over(SimpleNamespace(**{key: str(file)}), tmp_path / "other")
    with pytest.raises(UserError, match=f"{key} '.*best.pt' lies in this run's own folder"):
        check_not_written_over(SimpleNamespace(**{key: str(file)}), tmp_path / "run")
