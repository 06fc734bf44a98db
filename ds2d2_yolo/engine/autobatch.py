"""What Ultralytics' AutoBatch measures: a whole step of training, where a model's forward pass is only a part of it."""

from __future__ import annotations

from copy import deepcopy
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from ds2d2_yolo.distill.model import DS2D2Model


class WholeStep(nn.Module):
    """Makes the loss the output of a model that computes one, for images ``(B, C, H, W)`` with an object each.

    Its copies have a copy of all that is trained, and share the frozen teacher and amplifiers.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.stride, self.names, self.yaml = model.stride, model.names, model.yaml

    def __deepcopy__(self, memo):
        """Copy what a step changes."""
        model = deepcopy(self.model, memo)
        if isinstance(model, DS2D2Model):
            model._frozen = SimpleNamespace(**vars(self.model._frozen))
        return WholeStep(model)

    def forward(self, image: Tensor) -> Tensor:
        """Return the loss, of a step that measures the terms where there are any: the heaviest."""
        if isinstance(self.model, DS2D2Model):
            self.model.measure_next = True
        each = torch.arange(len(image), device=image.device)
        box = torch.tensor([[0.5, 0.5, 0.1, 0.1]], device=image.device)
        batch = {"batch_idx": each, "cls": torch.zeros_like(each)[:, None].float(), "bboxes": box.repeat(len(each), 1)}
        return self.model.loss({"img": image, **batch})[0].sum()
