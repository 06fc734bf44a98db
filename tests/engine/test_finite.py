"""A forward pass that overflows leaves no trace in the statistics, whoever leaves its step out."""

import pytest
import torch
from torch import nn
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.utils.torch_utils import ModelEMA

from ds2d2_yolo.engine.finite import FiniteSteps


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
