"""The student's trainer, a step at a time; whole runs are in tests/end_to_end/."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from ultralytics.cfg import DEFAULT_CFG_DICT
from ultralytics.nn.tasks import DetectionModel, load_checkpoint
from ultralytics.utils import YAML
from ultralytics.utils.dist import ddp_cleanup, generate_ddp_file

from ds2d2_yolo.datasets.demo import NAMES
from ds2d2_yolo.distill.model import DS2D2Model
from ds2d2_yolo.engine import settings
from ds2d2_yolo.engine.trainer import DS2D2Trainer
from ds2d2_yolo.errors import UserError
from tests.helpers.checkpoints import narrow_detector, save_checkpoint
from tests.helpers.distilling import frozen_state
from tests.helpers.steps import OWN, SIZE, begin, finish_epoch, step

# ---- what is trained


def test_the_optimizer_holds_student_and_adapters_alone(make):
    trainer = begin(make())
    model = trainer.model
    assert type(model) is DS2D2Model
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    frozen = [p for part in (model._frozen.teacher, model._frozen.full.head) for p in part.parameters()]
    assert not held & {id(p) for p in frozen}
    assert all(id(a.weight) in held for a in model.projector if isinstance(a, nn.Conv2d))
    assert any(isinstance(a, nn.Conv2d) for a in model.projector)


@pytest.mark.parametrize("optimizer", ["AdamW", "MuSGD"])
def test_every_optimizer_takes_the_pair(make, optimizer):
    trainer = make(optimizer=optimizer)
    trainer.setup_model()
    found = trainer.build_optimizer(trainer.model, name=optimizer)
    held = [id(p) for group in found.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in trainer.model.parameters())


def test_steps_move_student_adapters_and_ema_and_leave_the_teacher(make):
    trainer = begin(make(distill_warmup=0))
    frozen = frozen_state(trainer.model)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    step(trainer)
    moved = {k for k, v in trainer.model.state_dict().items() if not torch.equal(v, before[k])}
    adapters = [k for k in before if k.startswith("projector")]
    assert adapters
    assert moved > {*adapters, "student_model.model.0.conv.weight"}
    assert not torch.equal(trainer.ema.ema.state_dict()[adapters[0]], before[adapters[0]])
    after = frozen_state(trainer.model)
    assert all(torch.equal(v, after[k]) for k, v in frozen.items())
    assert not any(m.training for m in trainer.model._frozen.teacher.modules())
    assert trainer.ema.ema._frozen is None


def test_frozen_layers_stay_as_they_are(make):
    trainer = begin(make(freeze=3, distill_warmup=0))
    before = {k: v.clone() for k, v in trainer.model.state_dict().items() if k.startswith("student_model.model.")}
    step(trainer, 1)
    moved = {
        int(k.split(".")[2]) for k, v in trainer.model.state_dict().items() if k in before and (v != before[k]).any()
    }
    assert moved == {3, 4, 5}


def test_the_schedule_follows_epoch_and_step(make):
    trainer = begin(make(distill_warmup=2, distill_final=0.5, epochs=4))
    factors = []
    for trainer.epoch in (0, 1, 3):
        trainer._model_train()
        for batch in trainer.train_loader:
            trainer.preprocess_batch(batch)
            factors.append(trainer.model.balance.factor)
    cosine = [0.75 + 0.25 * torch.cos(torch.tensor(torch.pi * e / 4)).item() for e in (0, 0.5, 1, 1.5, 3, 3.5)]
    rise = [0, 0.25, 0.5, 0.75, 1, 1]
    assert factors == pytest.approx([c * r for c, r in zip(cosine, rise, strict=True)], abs=1e-6)


@pytest.mark.parametrize("balance, expected", [("gradient", [0, 2, 4]), ("fixed", [0])])
def test_gradients_are_measured_at_intervals(make, monkeypatch, balance, expected):
    trainer = begin(make(balance=balance, batch=2, nbs=2, balance_interval=2))
    assert raised(trainer, "measure_next") == expected


def raised(trainer, flag):
    """Before which of five batches a flag of the model's is raised, which its step would lower again."""
    numbers, model, batches = [], trainer.model, [*trainer.train_loader]
    for number, batch in enumerate([*batches, batches[0]]):
        trainer.preprocess_batch(dict(batch))
        if getattr(model, flag):
            numbers.append(number)
            setattr(model, flag, False)
    return numbers


@pytest.mark.parametrize("balance", ["gradient", "fixed"])
def test_an_amplifier_that_learns_is_asked_anew_at_intervals(make, balance):
    trainer = begin(make(balance=balance, batch=2, nbs=2, balance_interval=2, amplifier="alongside", im_high=0.3))
    assert raised(trainer, "renew_next") == [0, 2, 4]
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in trainer.model.parameters()} and trainer.model.amplifier is not None


@pytest.mark.parametrize(
    "nbs, epochs, expected",
    [(4, 4, [1, 1, 1, 1, 1, 1, 1, 1]), (4, 8, [1, 0, 1, 0, 1, 0, 1, 0]), (4, 16, [1, 0, 0, 0, 1, 0, 0, 0])]
    + [(8, 8, [1, 1, 0, 0, 1, 1, 0, 0])],
)
def test_an_amplifier_learns_in_as_many_steps_as_its_stage_has(make, nbs, epochs, expected):
    """Of the optimizer: all batches of one, or none."""
    trainer = begin(make(amplifier="alongside", im_high=0.3, amplifier_epochs=4, epochs=epochs, nbs=nbs, batch=4))
    learns = []
    for trainer.epoch in range(4):
        trainer._model_train()
        for batch in trainer.train_loader:
            trainer.preprocess_batch(batch)
            learns.append(trainer.model.learn_next)
            if len(learns) % (nbs // 4) == 0:
                trainer.optimizer_step()
        assert trainer.model.amplifier.epoch == trainer.epoch
    assert learns == expected


def test_the_trainers_loss_scale_is_the_boost(make):
    trainer = begin(make())
    trainer.amp, trainer.scaler = True, torch.amp.GradScaler("cpu", init_scale=8.0)
    trainer.preprocess_batch(next(iter(trainer.train_loader)))
    assert trainer.model.boost == 8


def test_classes_that_are_not_trained_are_not_taught(make):
    made = [begin(make(classes=classes, im_high=0.0)).model for classes in (None, 1, [0, 2])]
    assert [model._frozen.full.classes for model in made] == [None, [1], [0, 2]]


def test_recovery_reaches_an_amplifier_that_learns(make):
    trainer = finish_epoch(step(begin(make(amplifier="alongside", im_high=0.3, epochs=4))))
    trainer.epoch = 1
    trainer._model_train()
    step(trainer, 1)
    with torch.no_grad():
        for parameter in trainer.model.amplifier.parameters():
            parameter.add_(1)
        parameter.fill_(float("nan"))
    trainer.loss = torch.tensor(float("nan"))
    assert trainer._handle_nan_recovery(1)
    saved = load_checkpoint(trainer.last)[0].amplifier.state_dict()
    found = trainer.model.amplifier.state_dict()
    assert all(torch.allclose(found[k].float(), v.float(), rtol=1e-2, atol=1e-3) for k, v in saved.items())


def test_without_a_teacher_it_is_plain_training(make):
    trainer = begin(make(teacher=None))
    assert type(trainer.model) is DetectionModel
    finish_epoch(step(trainer))
    assert type(load_checkpoint(trainer.last)[0]) is DetectionModel
    header = trainer.csv.read_text().splitlines()[0]
    assert not any(name in header for name in settings.TERMS)


# ---- columns


def test_terms_and_shares_are_columns_of_training_alone(finished_epoch):
    header = finished_epoch.csv.read_text().splitlines()[0].split(",")
    for name in settings.TERMS:
        assert f"train/{name}" in header
        assert f"share/{name}" in header
        assert f"val/{name}" not in header
    assert "val/cls_loss" in header
    row = dict(zip(header, map(float, finished_epoch.csv.read_text().splitlines()[1].split(",")), strict=True))
    shares = [row[f"share/{name}"] for name in ("detection", *settings.TERMS)]
    assert sum(shares) == pytest.approx(1, abs=1e-3)
    assert row["share/im_full"] > row["share/ex_low"] > row["share/im_high"] == row["train/im_high"] == 0
    assert row["train/im_full"] > 0


def test_validation_gets_ultralytics_arguments(finished_epoch):
    validator = finished_epoch.validator
    assert not set(vars(validator.args)) & set(settings.defaults())
    assert validator.args.imgsz == SIZE
    assert finished_epoch.args.ex_low == 0.3  # the trainer keeps its own


# ---- settings on their way


def test_settings_are_in_args_yaml(make):
    trainer = make()
    saved = YAML.load(trainer.save_dir / "args.yaml")
    assert {k: saved[k] for k in OWN} == OWN
    assert saved["teacher"] == trainer.args.teacher


def test_settings_may_come_as_cfg(data, layout, tmp_path):
    cfg = {**DEFAULT_CFG_DICT, "data": str(data), "model": str(layout), "project": str(tmp_path), "device": "cpu"}
    trainer = DS2D2Trainer(cfg={**cfg, "ex_low": 0.7, "im_full": 0.9}, overrides={"im_full": 1})
    assert (trainer.args.ex_low, trainer.args.im_full) == (0.7, 1.0)
    assert trainer.args.ex_high == settings.defaults()["ex_high"]
    with pytest.raises(UserError, match="wavelet"):
        DS2D2Trainer(cfg={**cfg, "wavelet": "nonsense"})


@pytest.mark.parametrize("wrong", [{"ex_low": -1}, {"wavelet": "nonsense"}, {"im_ful": 1}, {"adapter": "sometimes"}])
def test_wrong_settings_leave_no_run_behind(make, tmp_path, wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        make(**wrong)
    assert list(tmp_path.iterdir()) == []


def test_settings_survive_ultralytics_multi_gpu_child(make, monkeypatch):
    trainer = make()
    monkeypatch.setattr(sys, "path", list(sys.path))
    file = generate_ddp_file(trainer)
    try:
        script = Path(file).read_text(encoding="utf-8")
        rebuild, train, rest = script.rpartition("trainer.train()")
        assert train
        assert not rest.strip()
        child = {"__name__": "__main__"}
        exec(compile(rebuild, file, "exec"), child)
    finally:
        ddp_cleanup(trainer, file)
    rebuilt = child["trainer"]
    assert type(rebuilt) is DS2D2Trainer
    assert vars(settings.of(rebuilt.args)) == vars(settings.of(trainer.args))
    assert vars(rebuilt.args) == vars(trainer.args)
    rebuilt.setup_model()
    assert type(rebuilt.model) is DS2D2Model
    assert vars(rebuilt.model.settings) == {**vars(settings.of(trainer.args)), "classes": None, "single_cls": False}


def test_compile_is_switched_off_for_pairs_alone(make):
    assert make(compile=True).args.compile is False
    assert make(compile=True, teacher=None).args.compile is True


# ---- teachers that cannot teach


@pytest.mark.parametrize("what", ["missing", "classes", "strides"])
def test_a_teacher_that_does_not_fit(make, folder, what):
    names = dict(enumerate(NAMES))
    teacher = narrow_detector("yolov8", nc=len(NAMES) - (what == "classes"))
    teacher.names = {k: v for k, v in names.items() if k < teacher.model[-1].nc}
    path = save_checkpoint(folder / f"{what}.pt", teacher)
    if what == "missing":
        path.unlink()
    said = {"missing": "does not exist", "classes": f"only the data has {NAMES[-1]}", "strides": "no stride in common"}
    trainer = make(teacher=str(path))
    if what == "strides":
        trainer.model = _finest_only(len(NAMES))
    with pytest.raises(UserError, match=said[what]):
        trainer.setup_model()


def _finest_only(nc):
    layout = [[[1], 1, "Detect", ["nc"]]]
    backbone = [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [8, 3, 2]]]
    return DetectionModel({"nc": nc, "backbone": backbone, "head": layout}, verbose=False)


def test_terms_that_are_small_are_not_rounded_away(finished_epoch):
    items = {"box_loss": torch.tensor(1.23456789), "ex_low": torch.tensor(1.23456789e-7)}
    assert finished_epoch.label_loss_items(items)["train/ex_low"] == pytest.approx(1.2346e-7, rel=1e-9)


def test_what_a_stage_has_drawn_changes_nothing_for_the_student(make, monkeypatch):
    seen = []
    for number in (1, 7):
        monkeypatch.setattr("ds2d2_yolo.engine.trainer.ensure_amplifier", lambda *_, n=number: str(torch.rand(n)))
        make().prepare()
        seen.append(torch.rand(4))
    assert torch.equal(*seen)


def test_with_a_time_limit_an_amplifier_learns_in_all_steps_of_the_first_epoch_alone(make):
    trainer = begin(make(amplifier="alongside", im_high=0.3, amplifier_epochs=1, time=1.0))
    assert trainer._part == 1
    trainer.epochs = trainer.args.epochs = 8  # as many as the first took the time for
    trainer.epoch = 1
    trainer._model_train()
    assert trainer._part == 1 / 8
