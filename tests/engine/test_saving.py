"""Checkpoints of the student's trainer: saved whole, resumed, released."""

import errno

import pytest
import torch
from ultralytics.nn.distill_model import DistillationModel
from ultralytics.nn.tasks import DetectionModel, load_checkpoint
from ultralytics.utils.torch_utils import ModelEMA

from ds2d2_yolo.datasets.demo import NAMES
from ds2d2_yolo.distill.model import DS2D2Model
from ds2d2_yolo.engine import settings
from ds2d2_yolo.engine.checkpoints import AtomicPath
from ds2d2_yolo.engine.trainer import DS2D2Trainer
from ds2d2_yolo.errors import UserError
from tests.helpers.checkpoints import narrow_detector, save_checkpoint
from tests.helpers.steps import OWN, begin, finish_epoch, step
from tests.helpers.training import listening, packages, same


def test_a_checkpoint_of_training_needs_ultralytics_alone(finished_epoch):
    """That it is loaded without this package, tests/end_to_end/test_training.py shows in a process of its own."""
    weights, _ = load_checkpoint(finished_epoch.last)
    assert type(weights) is DistillationModel
    assert weights.teacher_model is None
    teacher = sum(p.numel() for p in finished_epoch.model._frozen.teacher.parameters())
    student = sum(p.numel() for p in finished_epoch.model.parameters())
    assert sum(p.numel() for p in weights.parameters()) == student
    assert finished_epoch.last.stat().st_size < 2 * student + 4 * student + 2 * teacher  # weights, momentum, no teacher
    assert packages(finished_epoch.last) == {"__builtin__", "collections", "torch", "ultralytics"}


def test_the_ema_is_itself_again_after_saving(finished_epoch):
    assert type(finished_epoch.ema.ema) is DS2D2Model
    assert type(finished_epoch.model) is DS2D2Model
    assert not any(m._forward_hooks for m in finished_epoch.ema.ema.modules())
    assert next(finished_epoch.ema.ema.parameters()).dtype == torch.float32


def test_a_resumed_run_goes_on_as_it_was(finished_epoch, make, teacher_pt):
    resumed = begin(DS2D2Trainer(overrides={"resume": str(finished_epoch.last)}))
    assert resumed.start_epoch == 1
    assert {k: getattr(resumed.args, k) for k in OWN} == OWN
    assert resumed.args.teacher == str(teacher_pt)
    for ours, theirs in ((resumed.model, finished_epoch.model), (resumed.ema.ema, finished_epoch.ema.ema)):
        assert same(ours.state_dict(), theirs.state_dict())
    assert resumed.ema.updates == finished_epoch.ema.updates
    ours, theirs = (t.optimizer.state_dict()["state"] for t in (resumed, finished_epoch))
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert torch.equal(ours[key]["momentum_buffer"], theirs[key]["momentum_buffer"])
    measured = finished_epoch.model.balance.state()
    assert measured["scales"].keys() == measured["first"].keys() == set(finished_epoch.model.balance.active)
    assert resumed.model.balance.state() == measured
    step(resumed, 1)
    # The warm-up of one epoch is over, and a quarter of the way along the cosine
    assert resumed.model.balance.factor == pytest.approx((1 + 0.5**0.5) / 2)


@pytest.mark.parametrize("state", ["none", "of another run"])
def test_without_its_state_a_run_goes_on_from_half_precision(finished_epoch, make, state):
    path = finished_epoch.wdir / "state-0.pt"
    before, content = path.read_bytes(), torch.load(path, weights_only=True)
    path.unlink()
    if state != "none":
        content["ema"] = {name: value + 1 for name, value in content["ema"].items()}
        torch.save(content, path)
    try:
        with listening() as lines:
            resumed = begin(DS2D2Trainer(overrides={"resume": str(finished_epoch.last)}))
    finally:
        path.write_bytes(before)
    assert any("goes on from weights in half precision" in line for line in lines)
    expected = finished_epoch.ema.ema.state_dict()
    for key, value in resumed.model.state_dict().items():
        assert torch.equal(value, expected[key].half().to(value.dtype)), key


def test_a_teacher_that_moved_is_named_anew(finished_epoch, teacher_pt, tmp_path):
    moved = tmp_path / "moved.pt"
    moved.write_bytes(teacher_pt.read_bytes())
    trainer = DS2D2Trainer(overrides={"resume": str(finished_epoch.last), "teacher": moved, "ex_low": 9})
    assert trainer.args.teacher == str(moved)
    assert trainer.args.ex_low == 0.3  # the rest is as the run began


def test_another_teacher_cannot_go_on(finished_epoch, tmp_path):
    other = narrow_detector("yolov8-p6", nc=len(NAMES))
    other.names = dict(enumerate(NAMES))
    other = save_checkpoint(tmp_path / "other.pt", other)
    trainer = DS2D2Trainer(overrides={"resume": str(finished_epoch.last), "teacher": str(other)})
    with pytest.raises(UserError, match="is not the one that this run was started with"):
        trainer.setup_model()


def test_other_weights_of_the_same_teacher_are_another_teacher(finished_epoch, teacher_pt, tmp_path):
    other = load_checkpoint(teacher_pt)[0]
    with torch.no_grad():
        other.model[0].conv.weight += 1
    path = save_checkpoint(tmp_path / "other.pt", other)
    with pytest.raises(UserError, match="is not the one that this run was started with"):
        DS2D2Trainer(overrides={"resume": str(finished_epoch.last), "teacher": str(path)}).setup_model()
    DS2D2Trainer(overrides={"resume": str(finished_epoch.last)}).setup_model()


def test_an_unfinished_run_can_be_the_start_of_another(finished_epoch, make):
    trained = finished_epoch.ema.ema.student_model.state_dict()
    for changes in ({}, {"teacher": None}):
        trainer = make(model=str(finished_epoch.last), **changes)
        trainer.setup_model()
        student = getattr(trainer.model, "student_model", trainer.model)
        assert torch.equal(student.model[0].conv.weight, trained["model.0.conv.weight"].half().float())
    loaded = load_checkpoint(finished_epoch.last)[0]
    student = make().get_model(cfg=loaded.yaml, weights=loaded)  # as YOLO("last.pt").train(...) does
    assert torch.equal(student.model[0].conv.weight, trained["model.0.conv.weight"].half().float())


def test_a_full_disk_keeps_the_last_checkpoint(make, monkeypatch):
    trainer = finish_epoch(step(begin(make()), 1))
    before = trainer.last.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=f"No space left on device; resume with resume={trainer.last}"):
        trainer.save_model()
    monkeypatch.undo()
    assert trainer.last.read_bytes() == before
    assert sorted(p.name for p in trainer.wdir.iterdir()) == ["best.pt", "last.pt", "state-0.pt"]
    assert type(trainer.ema.ema) is DS2D2Model
    assert torch.load(trainer.last, weights_only=False)["ema"] is not None


def test_a_full_disk_at_the_end_keeps_the_trained_checkpoints(make, monkeypatch):
    trainer = finish_epoch(step(begin(make()), 1))
    before = {p: p.read_bytes() for p in (trainer.last, trainer.best)}

    def full(*_args, **_kwargs):
        raise RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 64 vs 0")

    monkeypatch.setattr("torch.save", full)
    with pytest.raises(UserError, match="disk full.*stays as trained"):
        trainer.final_eval()
    assert {p: p.read_bytes() for p in before} == before


def test_a_finished_run_is_a_plain_student(make):
    trainer = finish_epoch(step(begin(make()), 1))
    trainer.final_eval()
    for path in (trainer.last, trainer.best):
        model, content = load_checkpoint(path)
        assert type(model) is DetectionModel
        assert not any(m._forward_hooks for m in model.modules())
        assert content["optimizer"] is None
        assert (model.nc, list(model.names.values())) == (len(NAMES), list(NAMES))
        assert not set(content["train_args"]) & set(settings.defaults())
    assert sorted(p.name for p in trainer.wdir.iterdir()) == ["best.pt", "last.pt"]


def test_paths_of_checkpoints_are_atomic(make):
    trainer = make()
    assert {type(p) for p in (trainer.last, trainer.best, trainer.wdir, trainer.wdir / "epoch0.pt")} == {AtomicPath}


def test_nan_in_training_is_recovered_from(make):
    trainer = finish_epoch(step(begin(make()), 1))
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.fill_(float("nan"))
    trainer.loss = torch.tensor(float("nan"))
    trainer.epoch = 1
    assert trainer._handle_nan_recovery(1)
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    assert isinstance(trainer.ema, ModelEMA)
    step(trainer, 1)
    assert trainer.loss.isfinite()
