"""A forward pass that overflows leaves no trace in the statistics, whoever leaves its step out."""

from pathlib import Path

import pytest
import torch
from torch import nn
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.utils.torch_utils import ModelEMA

from ds2d2_yolo.engine.finite import FiniteSteps
from ds2d2_yolo.errors import UserError
from tests.helpers.training import listening


class Trainer(FiniteSteps, BaseTrainer):
    """The step of Ultralytics' trainer and nothing else of it."""

    def __init__(self, scaled):
        torch.manual_seed(0)
        self.model, self.device = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), torch.device("cpu")
        self.model.register_buffer("of_a_head_without_anchors", torch.empty(0))
        self.optimizer, self.ema = torch.optim.SGD(self.model.parameters(), 0.01), ModelEMA(self.model)
        self.scaler = torch.amp.GradScaler("cpu", enabled=scaled)

    def step(self, image):
        loss = self.model.train()(image).square().mean()
        self.loss, self.loss_items = loss.detach(), {"loss": loss.detach()}
        self.scaler.scale(loss).backward()
        self.optimizer_step()


@pytest.mark.parametrize("scaled", [False, True])
def test_statistics_heal_before_the_ema_sees_them(scaled):
    trainer = Trainer(scaled)
    images = torch.randn(3, 2, 3, 8, 8)
    trainer.step(images[0])
    weights = [p.clone() for p in trainer.model.parameters()]
    images[1, 0, 0, 0, 0] = torch.inf
    trainer.step(images[1])
    assert all(torch.equal(p, before) for p, before in zip(trainer.model.parameters(), weights, strict=True))
    for model in (trainer.model, trainer.ema.ema):
        assert all(b.isfinite().all() for b in model.buffers())
    trainer.step(images[2])
    assert not torch.equal(trainer.model[0].weight, weights[0])
    assert all(b.isfinite().all() for b in trainer.ema.ema.buffers())


def finite(scaled=False, **scale):
    trainer = Trainer(scaled)
    trainer.freeze_layer_names, trainer.fitness, trainer.start_epoch, trainer.last = [], None, 0, Path("last.pt")
    if scale:
        trainer.scaler = torch.amp.GradScaler("cpu", **scale)
    return trainer


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(
    "epochs, ends",  # of steps: g is good, b is not finite
    [
        (["b"], False),
        (["bb"], True),
        (["b", "b"], True),
        (["gbb", "g"], False),
        (["bg", "b"], False),
        (["gb", "b"], True),
    ],
)
def test_a_run_ends_where_an_epoch_has_no_finite_step_and_the_one_before_was_none(scaled, epochs, ends):
    trainer, images, ended = finite(scaled), torch.randn(2, 3, 8, 8), False
    for epoch, steps in enumerate(epochs):
        trainer._model_train()
        for kind in steps:
            trainer.step(images if kind == "g" else images * torch.inf)
        try:
            assert not trainer._handle_nan_recovery(epoch)
        except UserError as error:
            assert f"no step of epoch {epoch + 1} was finite (loss)" in str(error) and epoch == len(epochs) - 1
            ended = True
    assert ended == ends


def test_a_loss_scale_that_is_too_high_is_not_worth_a_word():
    trainer, images = finite(True, init_scale=2.0**127, growth_interval=10**6), torch.randn(2, 3, 8, 8) * 100
    trainer._model_train()
    with listening() as log:
        for _ in range(2):
            trainer.scaler._scale = torch.tensor(2.0**127) if trainer.scaler._scale is not None else None
            trainer.model[1].weight.data.fill_(100.0)  # losses of some 10^4: finite, and not when they are scaled
            trainer.step(images)
        assert trainer.loss.isfinite() and trainer.scaler.get_scale() < 2.0**127  # left out by PyTorch
        assert not trainer._handle_nan_recovery(0)
    assert not any("left out" in line for line in log)


def test_a_mean_loss_that_is_not_finite_leaves_the_one_before():
    trainer = finite()
    trainer.tloss = {"box": torch.tensor(2.0), "cls": torch.tensor(torch.nan)}
    trainer.tloss = {"box": torch.tensor(torch.inf), "cls": torch.tensor(3.0)}
    assert trainer.tloss == {"box": 2, "cls": 3}
