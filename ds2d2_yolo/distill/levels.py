"""Which feature maps of a teacher and a student meet: the neck levels of equal stride."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import torch
from torch import Tensor, nn
from ultralytics.nn.modules.head import Detect, v10Detect

from ds2d2_yolo.detectors import registry
from ds2d2_yolo.errors import UserError

# Exactly these: subclasses of Ultralytics' predict masks, angles, keypoints or text similarities
HEADS = (Detect, v10Detect, *registry.HEADS)


class Level(NamedTuple):
    """One shared level: its stride in pixels and its place in the student's and the teacher's list."""

    stride: int
    student: int
    teacher: int


def detect_head(model: nn.Module, who: str = "model") -> nn.Module:
    """Return the detection head of an Ultralytics model.

    Raises:
        UserError: The model has no such head, or one that predicts more than boxes and classes.
    """
    head = model.model[-1] if isinstance(getattr(model, "model", None), nn.Sequential) else None
    task = getattr(model, "task", None)
    if type(head) not in HEADS and task not in (None, "detect"):
        raise UserError(f"{who} is made for the task '{task}'; DS2D2 takes detectors of upright boxes, task 'detect'")
    if type(head) not in HEADS:
        raise UserError(f"{who} is no detector that DS2D2 can use ({type(model).__name__}, head {type(head).__name__})")
    if getattr(head, "cv2", head) is None:
        raise UserError(
            f"{who} was fused for inference and lacks its one-to-many branch; give the checkpoint as trained"
        )
    return head


@contextmanager
def tapped(head: nn.Module, then: Callable[[list[Tensor]], None] | None = None) -> Iterator[list[Tensor]]:
    """Collect the feature maps that ``head`` receives while the context is open; ``then`` sees them before it does.

    The hook lives only as long as the context: nothing to pickle, nothing lost when a model is rebuilt.
    """
    maps: list[Tensor] = []

    def keep(_module, inputs):
        maps[:] = inputs[0]
        if then is not None:
            then(maps)

    handle = head.register_forward_pre_hook(keep)
    try:
        yield maps
    finally:
        handle.remove()


class _Arrived(Exception):
    """A pass has come to the head."""


def _stop(_maps: list[Tensor]) -> None:
    raise _Arrived  # the head of a Faster R-CNN takes longer than all before it


def pass_to_head(model: nn.Module, channels: int) -> list[Tensor]:
    """Return the maps that the head receives for an empty image, in a pass that ends there and changes nothing."""
    head = detect_head(model)
    reference = next(model.parameters())
    size = 2 * int(head.stride.max())
    modes = [(module, module.training) for module in model.modules()]
    model.eval()  # a pass in train mode would move BatchNorm's statistics
    try:
        with suppress(_Arrived), torch.no_grad(), tapped(head, _stop) as maps:
            model(torch.zeros(1, channels, size, size, device=reference.device, dtype=reference.dtype))
    finally:
        for module, training in modes:
            module.training = training
    return list(maps)


def neck_channels(model: nn.Module, channels: int) -> list[int]:
    """Return the channels of every map the head receives."""
    return [m.shape[1] for m in pass_to_head(model, channels)]


def shared_levels(student: nn.Module, teacher: nn.Module) -> list[Level]:
    """Return the levels whose strides both heads have, finest first.

    Raises:
        UserError: The two have no stride in common.
    """
    ours = [int(s) for s in detect_head(student, "the student").stride]
    theirs = [int(s) for s in detect_head(teacher, "the teacher").stride]
    common = [Level(s, ours.index(s), theirs.index(s)) for s in sorted(set(ours) & set(theirs))]
    if not common:
        raise UserError(f"student (strides {ours}) and teacher (strides {theirs}) have no stride in common")
    return common
