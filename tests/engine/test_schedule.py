"""Learning rates, momentum and optimizer of whole trainings of seconds, as the optimizer sees them at each step."""

import pytest
import torch
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import YAML

from ds2d2_yolo.engine.amplifier_trainer import AmplifierTrainer
from ds2d2_yolo.engine.trainer import DS2D2Trainer
from ds2d2_yolo.errors import UserError
from tests.helpers.distilling import tiny
from tests.helpers.steps import begin, step
from tests.helpers.training import listening

LR = 0.02
EPOCHS, BATCHES = 6, 4
STEPPED = {"lr_steps": [3, 5], "lr_gamma": 0.1, "warmup_iterations": 7, "nesterov": False, "momentum": 0.9}


@pytest.fixture(scope="module")
def small(tmp_path_factory, data):
    """Arguments of a training of six epochs of four batches, one step each, of a detector of a few layers."""
    path = tmp_path_factory.mktemp("layout") / "tiny.yaml"
    YAML.save(path, {k: v for k, v in tiny().yaml.items() if k != "channels"})
    files = {"model": str(path), "data": str(data)}
    sizes = {"imgsz": 64, "batch": 2, "nbs": 2, "epochs": EPOCHS, "optimizer": "SGD", "lr0": LR}
    return {**files, **sizes, "device": "cpu", "plots": False, "amp": False, "val": False, "mosaic": 0.0}


@pytest.fixture
def trained(small, tmp_path):
    """Trains, and returns what the optimizer's groups were at every step, as lists a group."""

    def train(trainer_class=DS2D2Trainer, stop_after=None, **changes):
        if "resume" not in changes:
            changes = {**small, "project": str(tmp_path), "name": "run", "exist_ok": True, **changes}
        trainer, seen = trainer_class(overrides=changes), []

        def watch(trainer):
            trainer.optimizer.register_step_pre_hook(
                lambda optimizer, *_: seen.append([{k: g.get(k) for k in KEPT} for g in optimizer.param_groups])
            )

        def stop(trainer):
            if trainer.epoch + 1 == stop_after:
                raise KeyboardInterrupt

        trainer.add_callback("on_train_start", watch)
        trainer.add_callback("on_model_save", stop)
        if stop_after:
            with pytest.raises(KeyboardInterrupt):
                trainer.train()
        else:
            trainer.train()
        return trainer, seen

    return train


KEPT = ("lr", "momentum", "nesterov", "weight_decay", "param_group")


def rates(seen):
    """The learning rate of every step; all groups have the same."""
    for groups in seen:
        assert len({group["lr"] for group in groups}) == 1
        assert len(groups) == 3
    return [groups[0]["lr"] for groups in seen]


def published(steps=EPOCHS * BATCHES, per_epoch=BATCHES, warmup=7, falls=(3, 5)):
    """The paper's formula: linear from a thousandth over the warm-up, a tenth after each of the epochs."""
    expected = []
    for number in range(steps):
        rise = 0.001 + 0.999 * number / warmup if number < warmup else 1
        expected.append(LR * rise * 0.1 ** sum(number // per_epoch >= epoch for epoch in falls))
    return expected


# ---- whole trainings


@pytest.mark.slow
def test_every_step_has_the_rate_of_the_formula(trained):
    trainer, seen = trained(**STEPPED)
    assert rates(seen) == pytest.approx(published(), rel=1e-9)
    assert {(g["momentum"], g["nesterov"]) for groups in seen for g in groups} == {(0.9, False)}
    logged = [float(row.split(",")[-1]) for row in trainer.csv.read_text().splitlines()[1:]]
    assert logged == pytest.approx(published()[BATCHES - 1 :: BATCHES], rel=1e-4)


@pytest.mark.slow
def test_a_warm_up_may_cross_a_fall(trained):
    _, seen = trained(**STEPPED | {"warmup_iterations": 15})
    assert rates(seen) == pytest.approx(published(warmup=15), rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("stop_after", [1, 2, 4])  # within the warm-up, just behind it, between the falls
def test_a_resumed_run_goes_on_with_the_formula(trained, stop_after):
    first, before = trained(stop_after=stop_after, **STEPPED)
    resumed, after = trained(resume=str(first.last))
    assert len(before) == stop_after * BATCHES
    assert rates(before + after) == pytest.approx(published(), rel=1e-9)
    assert not any(group["nesterov"] for groups in after for group in groups)
    assert {key: getattr(resumed.args, key) for key in STEPPED} == STEPPED
    ultralytics = ("warmup_epochs", "warmup_bias_lr", "warmup_momentum")
    assert [getattr(resumed.args, k) for k in ultralytics] == [getattr(first.args, k) for k in ultralytics]


@pytest.mark.slow
def test_steps_are_counted_where_batches_are_collected(trained):
    """With two batches for a step of the optimizer there are half as many, and the warm-up is as many of them."""
    _, seen = trained(**STEPPED | {"nbs": 4, "warmup_iterations": 3})
    expected = published(steps=EPOCHS * BATCHES // 2, per_epoch=BATCHES // 2, warmup=3)
    assert rates(seen) == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"cos_lr": True, "warmup_epochs": 1.5, "nbs": 4}, {"optimizer": "auto"}])
def test_by_default_the_schedule_is_ultralytics_own(trained, changes):
    _, theirs = trained(DetectionTrainer, **changes)
    _, ours = trained(DS2D2Trainer, **changes)
    assert ours == theirs
    assert len({group["lr"] for groups in ours for group in groups}) > EPOCHS


@pytest.mark.slow
def test_the_warm_up_goes_with_ultralytics_decay_too(trained):
    trainer, seen = trained(warmup_iterations=7, cos_lr=True)
    expected = [
        LR * trainer.lf(number // BATCHES) * (0.001 + 0.999 * min(number / 7, 1)) for number in range(len(seen))
    ]
    assert rates(seen) == pytest.approx(expected, rel=1e-9)


# ---- a part of one


@pytest.fixture
def start(small, tmp_path):
    """Sets a training up as far as its first step."""
    return lambda **changes: begin(DS2D2Trainer(overrides={**small, "project": str(tmp_path), **changes}))


def test_the_warm_up_begins_at_a_thousandth(start):
    trainer = start(**STEPPED)
    step(trainer, 3)
    assert [g["lr"] for g in trainer.optimizer.param_groups] == pytest.approx([published()[2]] * 3, rel=1e-9)
    assert trainer.ema.updates == 3


def test_a_distilled_student_warms_up_alike(make):
    trainer = step(begin(make(lr0=LR, **STEPPED)), 2)
    assert any(True for _ in trainer.model.projector.parameters())
    assert [g["lr"] for g in trainer.optimizer.param_groups] == pytest.approx([published()[1]] * 3, rel=1e-9)
    assert not any(g["nesterov"] for g in trainer.optimizer.param_groups)


@pytest.mark.parametrize(
    ("iterations", "changes", "said"),
    [(20000, {}, True), (5000, {}, False), (20000, {"teacher": None}, False), (20000, {"optimizer": "MuSGD"}, False)],
)
def test_what_was_never_measured_is_said(make, iterations, changes, said):
    trainer = make(**{"optimizer": "auto", **changes})
    trainer.setup_model()
    with listening() as log:
        trainer.build_optimizer(trainer.model, trainer.args.optimizer, iterations=iterations)
    assert any("MuSGD, with which no gain of DS2D2 has been measured" in line for line in log) == said


@pytest.mark.parametrize("optimizer", ["SGD", "MuSGD"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_nesterov_is_a_choice(start, optimizer, nesterov):
    trainer = start(optimizer=optimizer, nesterov=nesterov)
    assert {group["nesterov"] for group in trainer.optimizer.param_groups} == {nesterov}


def test_plain_momentum_is_plain(start):
    """Two steps with the same gradient g move by lr g and lr (1 + m) g."""
    trainer = start(**STEPPED | {"warmup_iterations": 0, "weight_decay": 0.0})
    weight = next(p for p in trainer.model.parameters() if p.requires_grad)
    places = [weight.detach().clone()]
    for _ in range(2):
        trainer.optimizer.zero_grad()
        weight.grad = torch.full_like(weight, 1e-3)
        trainer.optimizer_step()
        places.append(weight.detach().clone())
    moved = [(a - b).mean().item() for a, b in zip(places, places[1:], strict=False)]
    assert moved == pytest.approx([LR * 1e-3, LR * 1.9e-3], rel=1e-2)


@pytest.mark.parametrize("optimizer", ["SGD", "sgd", "MuSGD"])
def test_sgd_without_momentum(start, optimizer):
    trainer = start(optimizer=optimizer, momentum=0, warmup_momentum=0, nesterov=False)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    step(trainer)
    assert {group["momentum"] for group in trainer.optimizer.param_groups} == {0}
    assert any((a != b).any() for a, b in zip(before, trainer.model.parameters(), strict=True))
    with pytest.raises(UserError, match="momentum=0: .* add nesterov=False"):
        start(optimizer=optimizer, momentum=0)


def test_other_optimizers_have_no_nesterov(start):
    trainer = start(optimizer="AdamW", nesterov=False)
    assert not any("nesterov" in group for group in trainer.optimizer.param_groups)


@pytest.mark.parametrize("epochs, steps", [(24, [16, 22]), (12, [8, 11]), (48, [32, 44]), (10, [7, 9]), (1, [1, 1])])
def test_the_amplifier_stage_falls_at_the_same_part_of_its_length(small, tmp_path, epochs, steps):
    changes = {"epochs": epochs, "lr_steps": "16,22", "lr_gamma": 0.5, "student_run": {"epochs": 24}}
    trainer = AmplifierTrainer(overrides={**small, "project": str(tmp_path), **changes})
    trainer.optimizer = torch.optim.SGD([torch.zeros(1)], lr=LR)
    trainer._setup_scheduler()
    factors = [trainer.lf(epoch) for epoch in range(50)]
    assert factors == [0.5 ** sum(epoch >= s for s in steps) for epoch in range(50)]


def test_with_a_time_limit_all_processes_plan_for_the_epochs_of_the_first(start, monkeypatch):
    trainer = start(time=1.0)
    trainer.epochs = trainer.args.epochs = 9  # what this process makes of its own clock
    monkeypatch.setattr("ds2d2_yolo.engine.processes.agreed", lambda value: value + 3)
    trainer._setup_scheduler()
    assert trainer.epochs == trainer.args.epochs == 12
    assert trainer.lf(6) == pytest.approx(0.5 * (1 - trainer.args.lrf) + trainer.args.lrf)


def test_a_stage_speaks_of_its_own_length(small, tmp_path):
    changes = {"epochs": 1, "lr_steps": "2", "warmup_iterations": 5, "student_run": {**small, "epochs": 4}}
    trainer = AmplifierTrainer(overrides={**small, "project": str(tmp_path), **changes})
    trainer.setup_model = lambda: trainer.__dict__.update(model=tiny())
    with listening() as lines:
        begin(trainer)
    said = "\n".join(lines)
    assert "warmup_iterations=5: the amplifier's stage has 4 steps only" in said and "never gets there" not in said


def test_what_a_run_is_too_short_for_is_said(start):
    with listening() as lines:
        start(lr_steps=[3, 6, 22], warmup_iterations=EPOCHS * BATCHES + 1)
    said = "\n".join(lines)
    assert "lr_steps=[6, 22]: a run of 6 epochs never gets there" in said
    assert "warmup_iterations=25: the run has 24 steps only" in said
    with listening() as lines:
        start(lr_steps=[3, 5], warmup_iterations=EPOCHS * BATCHES)
    assert not [line for line in lines if "lr_steps=[" in line and "never" in line or "steps only" in line]


def test_a_warm_up_longer_than_the_run_is_told_in_its_steps(make):
    with listening() as lines:
        begin(make(teacher=None, epochs=4, batch=4, nbs=8, warmup_iterations=5))  # of two batches each
    assert any("warmup_iterations=5: the run has 4 steps only" in line for line in lines)
