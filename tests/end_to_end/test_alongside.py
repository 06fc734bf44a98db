"""Students whose high-frequency amplifier learns in the same steps: what such runs leave, and how they go on."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.nn.tasks import load_checkpoint

from ds2d2_yolo import cli
from ds2d2_yolo.distill.levels import detect_head
from ds2d2_yolo.distill.teacher import load_teacher
from ds2d2_yolo.engine.alongside import rate
from ds2d2_yolo.engine.amplifier_file import amplifier_head
from ds2d2_yolo.engine.pair import load_pair
from ds2d2_yolo.engine.trainer import DS2D2Trainer
from tests.helpers.launching import ROOT, torchrun
from tests.helpers.training import RECIPE, hang_in, listening, one_error, packages, resume, rows, same, train, weights

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def alongside(tmp_path_factory, scenes, teacher, small):
    """A run of 3 epochs; its settings, log, and a copy of its folder as it was after the first epoch."""
    folder = tmp_path_factory.mktemp("alongside")
    shutil.copy(teacher, folder / "teacher.pt")
    seen = SimpleNamespace(run=folder / "run", cut=folder / "cut", teacher=folder / "teacher.pt", averaged={})
    settings = {"data": scenes, "model": small, "teacher": seen.teacher, "epochs": 3, "balance_interval": 1}

    def note(trainer):
        if trainer.epoch == 0:
            shutil.copytree(seen.run, seen.cut)
        seen.averaged = {k: v.half() for k, v in weights(trainer.ema.ema.amplifier.model.head).items()}

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
    head = amplifier_head(alongside.run / "weights" / "amplifier.pt", teacher, "haar", "zero", "bands")
    began = weights(detect_head(teacher))
    moved = {name for name, value in weights(head).items() if not torch.equal(value, began[name].float())}
    assert {"cv2.0.0.conv.weight", "cv3.2.2.bias", "cv3.0.0.bn.running_var"} <= moved
    assert not any("dfl" in name for name in moved)
    assert all(torch.equal(value, alongside.averaged[name].to(value.dtype)) for name, value in weights(head).items())


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
    assert (alongside.run / "results.csv").read_text().count("\n") == 4
    for row, expected in zip(rows(tmp_path / "run"), rows(alongside.run), strict=True):
        assert row["train/amplifier"] == expected["train/amplifier"]


def test_resumed_from_the_checkpoint_alone(alongside, tmp_path, monkeypatch):
    """Without the state beside it the amplifier is the average, in half precision."""
    shutil.copytree(alongside.cut, tmp_path / "run")
    (tmp_path / "run" / "weights" / "state-0.pt").unlink()
    last, seen = tmp_path / "run" / "weights" / "last.pt", {}
    saved = load_checkpoint(last)[0].amplifier.state_dict()
    hang_in(monkeypatch, "on_train_start", lambda trainer: seen.update(weights(trainer.model.amplifier)))
    assert resume(last, save_dir=tmp_path / "run") == 0
    assert all(torch.equal(seen[name], value.to(seen[name].dtype)) for name, value in saved.items())


@pytest.mark.parametrize("given", ["auto", "file"])
def test_it_cannot_be_changed_on_the_way(alongside, tmp_path, capsys, given):
    """Which is said before a stage is trained."""
    shutil.copytree(alongside.cut, tmp_path / "run")
    last = tmp_path / "run" / "weights" / "last.pt"
    given = "auto" if given == "auto" else alongside.run / "weights" / "amplifier.pt"
    assert resume(last, save_dir=tmp_path / "run", amplifier=given) == 2
    assert "started with an amplifier that learns alongside: resume it without amplifier=" in one_error(capsys)
    assert not list(alongside.teacher.parent.glob("*-amplifier*"))


def test_its_rating_writes_nothing_of_the_students(tmp_path, scenes, teacher, small, monkeypatch):
    """Detections that are saved are the student's, and the teacher's file is not needed any more."""
    own, kept = tmp_path / "teacher.pt", {}
    shutil.copy(teacher, own)

    def before(trainer, *args):
        kept.update({p: p.read_bytes() for p in (tmp_path / "run").glob("**/*") if p.is_file()})
        own.unlink()
        rate(trainer, *args)

    monkeypatch.setattr("ds2d2_yolo.engine.alongside.rate", before)
    settings = {"data": scenes, "model": small, "teacher": own, "epochs": 1, "amplifier": "Alongside"}
    assert train(tmp_path, name="run", save_json=True, save_txt=True, **settings) == 0
    after = {p: p.read_bytes() for p in (tmp_path / "run").glob("**/*") if p.is_file()}
    amplifier = tmp_path / "run" / "weights" / "amplifier.pt"
    assert after.keys() == kept.keys() and kept.pop(amplifier) != after[amplifier]  # now with what was found
    assert tmp_path / "run" / "predictions.json" in kept
    assert {p: after[p] for p in kept} == kept


@pytest.mark.parametrize("which", [1, 2])
def test_an_interruption_of_its_rating_leaves_it(tmp_path, scenes, teacher, small, monkeypatch, which):
    """Or one of the student's, which comes before."""
    call, rated = DetectionValidator.__call__, []

    def stop(self, trainer=None, model=None):
        if trainer is None and (rated.append(1) or len(rated) == which):
            raise KeyboardInterrupt
        return call(self, trainer, model)

    monkeypatch.setattr(DetectionValidator, "__call__", stop)
    settings = {"data": scenes, "model": small, "teacher": teacher, "epochs": 1, "amplifier": "alongside"}
    assert train(tmp_path, name="run", **settings) == 130
    assert torch.load(tmp_path / "run/weights/amplifier.pt", weights_only=True)["head"]


def test_explain_finds_it(alongside, pictures, tmp_path, capsys):
    best = alongside.run / "weights" / "best.pt"
    assert cli.val([f"explain={pictures[0]}", f"model={best}", f"save_dir={tmp_path}"]) == 0
    assert str(alongside.run / "weights" / "amplifier.pt") in capsys.readouterr().out
    unfinished = alongside.cut / "weights" / "last.pt"
    pair = load_pair(unfinished)
    assert pair.high is not None
    assert any("amplifier: as far as it has learned alongside this student" in note for note in pair.notes)
    other = torch.load(alongside.teacher, weights_only=False)  # as large, of other weights
    other["model"].model[0].conv.weight.data.mul_(2)
    torch.save(other, tmp_path / "other.pt")
    for wavelet, given in (("db2", {"changes": {"wavelet": "db2"}}), ("haar", {"teacher": tmp_path / "other.pt"})):
        pair = load_pair(unfinished, **given)
        assert pair.high is None
        assert any(f"No high-frequency amplifier of this teacher for {wavelet}" in note for note in pair.notes)


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
