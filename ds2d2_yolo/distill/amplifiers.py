"""Knowledge amplifiers: frozen heads asked for comparable predictions (DS2D2).

A new kind of head is one class here that turns a list of feature maps into ``Predictions``.
"""

from __future__ import annotations

from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from ultralytics.nn.modules.conv import Conv
from ultralytics.nn.modules.head import Detect
from ultralytics.utils.tal import dist2bbox, make_anchors
from ultralytics.utils.torch_utils import fuse_conv_and_bn


class Predictions(NamedTuple):
    """Class logits ``(B, N, K)`` and boxes ``(B, N, 4)`` in xyxy pixels of the batch image, float32."""

    logits: Tensor
    boxes: Tensor

    @classmethod
    def of(cls, head: Detect, raw: dict[str, Tensor], maps: list[Tensor], strides: Tensor) -> Predictions:
        """Decode the raw outputs ``boxes (B, 4 reg_max, N)`` and ``scores (B, K, N)`` of a YOLO head."""
        with torch.autocast(maps[0].device.type, enabled=False):  # boxes in half precision are off by pixels
            points, stride = make_anchors([m.float() for m in maps], strides, 0.5)
            distances = head.dfl(raw["boxes"].float()) if head.reg_max > 1 else raw["boxes"].float()
            boxes = dist2bbox(distances, points.T[None], xywh=False, dim=1) * stride.T
        return cls(raw["scores"].float().transpose(1, 2), boxes.transpose(1, 2))


class YOLOAmplifier:
    """A frozen Ultralytics detection head, asked on some of its levels.

    Args:
        head: The head; it is copied, frozen and kept in eval mode. Not a module, so that no optimizer, checkpoint
            or EMA ever meets its weights.
        levels: Indices of the head's levels, in the order in which maps will come.
        branch: ``one2many`` or ``one2one``, for heads that have both.
    """

    def __init__(self, head: Detect, levels: list[int], branch: str = "one2many"):
        self.head = fused(deepcopy(head).eval()).requires_grad_(False)
        self.levels = levels
        if branch == "one2one" and getattr(head, "one2one_cv2", None) is None:
            branch = "one2many"  # heads without an end-to-end branch have only this one
        self.box, self.cls = getattr(self.head, branch).values()

    def to(self, fn) -> None:
        """Apply ``fn`` (a move or a cast) to every tensor of the head."""
        self.head._apply(fn)
        self.head.stride = fn(self.head.stride)

    def __call__(self, maps: list[Tensor]) -> Predictions:
        """Return the head's predictions on ``maps``, one ``(B, C, H, W)`` a level; gradients flow to the maps."""
        raw = {
            "boxes": torch.cat([self.box[i](m).flatten(2) for i, m in zip(self.levels, maps, strict=True)], 2),
            "scores": torch.cat([self.cls[i](m).flatten(2) for i, m in zip(self.levels, maps, strict=True)], 2),
        }
        return Predictions.of(self.head, raw, maps, self.head.stride[self.levels])


def fused(head: nn.Module) -> nn.Module:
    """Fold every BatchNorm of a frozen head into its convolution: the same function, fewer maps to keep."""
    for m in head.modules():
        if isinstance(m, Conv) and hasattr(m, "bn"):
            m.conv = fuse_conv_and_bn(m.conv, m.bn)
            delattr(m, "bn")
            m.forward = m.forward_fuse
    return head


class Neck(nn.Module):
    """Stands in for a model's head and hands the feature maps on, so that the model stops at its neck."""

    @classmethod
    def replace_head(cls, model: nn.Module) -> nn.Module:
        """Take the head off ``model`` and return it; afterwards the model returns the maps the head received."""
        head = model.model[-1]
        neck = cls()
        neck.i, neck.f, neck.type, neck.np = head.i, head.f, cls.__name__, 0
        model.model[-1] = neck
        return head

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return ``maps`` as they came."""
        return maps
