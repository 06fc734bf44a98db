"""What a run that never got anywhere leaves behind: nothing of its own, and all that was there before."""

import threading

import pytest
import torch
from ultralytics import YOLO
from ultralytics.utils import YAML

from ds2d2_yolo.engine.runs import RunFolder, in_the_first_stage, other_run, run_of, stage_folder, student_folder
from ds2d2_yolo.engine.trainer import DS2D2Trainer
from ds2d2_yolo.errors import UserError, explain
from tests.helpers.distilling import tiny
from tests.helpers.steps import begin, finish_epoch, step


def start(path, *more):
    """What Ultralytics makes of a run's folder before the first epoch, and `more` files."""
    folder = RunFolder(path)
    for name in ("args.yaml", "labels.jpg", "train_batch0.jpg", *more):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("new")
    (path / "weights").mkdir(exist_ok=True)
    return folder


def test_a_run_is_found_from_its_checkpoint_and_its_stage(tmp_path):
    start(tmp_path / "moved")
    assert run_of(tmp_path / "moved" / "weights" / "last.pt") == tmp_path / "moved"
    (tmp_path / "weights").mkdir()
    assert run_of(tmp_path / "weights" / "last.pt") is run_of("last.pt") is None
    assert student_folder(stage_folder(tmp_path / "moved")) == tmp_path / "moved"
    assert student_folder(tmp_path / "moved") is student_folder(tmp_path / "-amplifier") is None


def content(folder):
    return {str(path.relative_to(folder)): path.is_file() and path.read_text() for path in folder.rglob("*")}


def test_all_that_it_made_is_removed(tmp_path):
    (tmp_path / "project").mkdir()
    start(tmp_path / "project" / "deep" / "er" / "run").remove_if_worthless()
    assert content(tmp_path) == {"project": False}


def test_pictures_of_the_first_validation_are_removed_too(tmp_path):
    names = ("val_batch0_labels.jpg", "BoxPR_curve.png", "confusion_matrix_normalized.png")
    start(tmp_path / "run", *names).remove_if_worthless()
    assert content(tmp_path) == {}


def test_a_folder_with_another_run_in_it_stays(tmp_path):
    folder = start(tmp_path / "project" / "one")
    (tmp_path / "project" / "two").mkdir()
    folder.remove_if_worthless()
    assert content(tmp_path) == {"project": False, "project/two": False}


@pytest.mark.parametrize("name", ["weights/last.pt", "weights/epoch0.pt", "notes.txt", "own/notes.txt"])
def test_anything_of_worth_keeps_it_whole(tmp_path, name):
    folder = start(tmp_path / "run", name)
    before = content(tmp_path)
    folder.remove_if_worthless()
    assert content(tmp_path) == before
    assert f"run/{name}" in before


@pytest.mark.parametrize("epochs, stays", [(1, False), (2, True)])
def test_the_row_of_an_epoch_without_its_checkpoint_is_of_no_worth(tmp_path, epochs, stays):
    """Ultralytics writes the row first."""
    folder = start(tmp_path / "run", "results.csv", "results.png")
    (tmp_path / "run" / "results.csv").write_text("epoch\n" + "1\n" * epochs)
    (tmp_path / "run" / "results.png").unlink()
    folder.remove_if_worthless()
    assert (tmp_path / "run").exists() == stays


@pytest.mark.parametrize("name", ["args.yaml", "results.csv", "weights/last.pt", "notes.txt"])
def test_what_was_there_before_is_not_touched(tmp_path, name):
    (tmp_path / "run" / name).parent.mkdir(parents=True)
    (tmp_path / "run" / name).write_text("old")
    folder = start(tmp_path / "run")
    before = content(tmp_path)
    folder.remove_if_worthless()
    assert content(tmp_path) == before


def test_an_empty_folder_that_was_there_before_is_empty_again(tmp_path):
    (tmp_path / "run").mkdir()
    start(tmp_path / "run").remove_if_worthless()
    assert content(tmp_path) == {"run": False}


def test_its_first_stage_keeps_it(tmp_path):
    folder = start(tmp_path / "run")
    start(tmp_path / "run-amplifier", "results.csv")
    before = content(tmp_path)
    folder.remove_if_worthless()
    assert content(tmp_path) == before


def test_the_first_stage_of_an_older_run_does_not(tmp_path):
    start(tmp_path / "run-amplifier", "results.csv")
    start(tmp_path / "run").remove_if_worthless()
    assert [path.name for path in tmp_path.iterdir()] == ["run-amplifier"]


# ---- trainers


def press_ctrl_c(trainer):
    raise KeyboardInterrupt


def test_a_refused_run_leaves_its_number_to_the_next(make, tmp_path):
    for _ in range(2):
        trainer = make(teacher="nowhere.pt")
        assert (tmp_path / "run" / "args.yaml").exists()
        with pytest.raises(UserError, match="does not exist"):
            trainer.train()
        assert list(tmp_path.iterdir()) == []
    assert make().save_dir == tmp_path / "run"
    assert make().save_dir == tmp_path / "run-2"


def test_a_run_that_is_refused_while_it_is_made(make, tmp_path):
    with pytest.raises(RuntimeError, match=r"nowhere\.yaml"):
        make(data="nowhere.yaml")
    assert list(tmp_path.iterdir()) == []


def test_a_refused_run_leaves_an_older_one_alone(make, tmp_path):
    older = finish_epoch(step(begin(make()), 1))
    kept = sorted(older.wdir.iterdir())
    with pytest.raises(UserError, match="does not exist"):
        make(teacher="nowhere.pt", exist_ok=True).train()
    assert sorted(older.wdir.iterdir()) == kept
    assert [path.name for path in kept] == ["best.pt", "last.pt", "state-0.pt"]


def test_ctrl_c_before_the_first_epoch_is_over(make, tmp_path):
    trainer = make(plots=True)
    trainer.add_callback("on_train_batch_end", press_ctrl_c)
    with pytest.raises(KeyboardInterrupt, match="before the first checkpoint; start the same command again"):
        trainer.train()
    assert list(tmp_path.iterdir()) == []
    assert not [thread.name for thread in threading.enumerate() if "plot" in thread.name]  # it would miss its folder


def test_a_bug_leaves_its_traces(make, tmp_path):
    trainer = make()
    trainer.add_callback("on_train_start", lambda trainer: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert (tmp_path / "run" / "args.yaml").exists()


# ---- from Python


@pytest.fixture
def keywords(arguments, tmp_path):
    return {**{k: v for k, v in arguments.items() if k != "model"}, "project": str(tmp_path), "trainer": DS2D2Trainer}


def test_from_python_a_refused_run_leaves_nothing(keywords, layout, folder, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        YOLO(layout).train(**{**keywords, "teacher": "nowhere.pt"})
    assert list(tmp_path.iterdir()) == []
    torch.save({"model": YOLO("yolo11n-seg.yaml").model, "epoch": -1}, folder / "other-task.pt")
    with pytest.raises(UserError, match="task=segment: what is trained here detects upright boxes; take such a model"):
        YOLO(folder / "other-task.pt").train(**keywords)
    with pytest.raises(RuntimeError, match=r"nowhere\.yaml") as raised:
        YOLO(layout).train(**{**keywords, "data": "nowhere.yaml"})
    assert explain(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("event, says", [("on_train_start", "start the same command"), ("on_model_save", "resume=")])
def test_from_python_ctrl_c_says_how_to_go_on(keywords, layout, tmp_path, event, says):
    model = YOLO(layout)
    model.add_callback(event, press_ctrl_c)
    with pytest.raises(KeyboardInterrupt, match=says) as raised:
        model.train(**{**keywords, "val": False, "epochs": 2})
    last = tmp_path / "run" / "weights" / "last.pt"
    if event == "on_model_save":
        assert str(raised.value) == f"interrupted; continue with: python train.py resume={last}"
    assert last.exists() == (event == "on_model_save")
    assert any(tmp_path.iterdir()) == last.exists()


@pytest.mark.parametrize(
    "epoch, student, said",
    [
        (1, {"epochs": 3}, "; the run was in its first stage: resume={stage}"),
        (9, {"epochs": 3}, "; the first stage is over, and no epoch of the second: resume={stage}"),
        (
            9,
            None,
            "; the first stage is over, and no epoch of the second: start the same command again",
        ),  # an older one
        (None, None, ""),  # broken
    ],
)
def test_where_a_run_was_that_has_no_checkpoint(tmp_path, epoch, student, said):
    last = tmp_path / "student/weights/last.pt"
    assert in_the_first_stage(last) == ""
    stage = tmp_path / "student-amplifier/weights/last.pt"
    stage.parent.mkdir(parents=True)
    if epoch is None:
        stage.touch()
    else:
        args = {"task": "detect", "imgsz": 64, "epochs": 10, "student_run": student}
        torch.save({"ema": tiny(), "model": None, "epoch": epoch, "optimizer": {}, "train_args": args}, stage)
    assert in_the_first_stage(last) == said.format(stage=stage)
    assert in_the_first_stage("/last.pt") == in_the_first_stage("last.pt") == ""


@pytest.mark.parametrize(
    "made, other",
    [
        ({"teacher": "t.pt", "model": "t.pt", "student_run": None}, False),  # a stage
        ({"teacher": "t.pt", "model": "x/last.pt", "student_run": {"epochs": 3}}, False),  # one that was resumed
        ({"teacher": None, "model": "t.pt"}, True),
        ({"teacher": "t.pt", "model": "small.yaml", "student_run": None}, True),
        (None, True),
    ],
)
def test_whose_folder_a_stage_finds(tmp_path, made, other):
    stage = tmp_path / "run-amplifier"
    assert other_run(stage) is None
    (stage / "weights").mkdir(parents=True)
    if made is not None:
        YAML.save(stage / "args.yaml", made)
    assert other_run(stage) is None  # nothing to lose
    (stage / "weights/t-amplifier-0123456789.pt").touch()
    assert other_run(stage) is None  # nor by an amplifier, which stays
    (stage / "weights/best.pt").touch()
    assert (other_run(stage) is not None) == other
