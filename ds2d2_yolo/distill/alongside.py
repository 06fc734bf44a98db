"""The high-frequency amplifier, trained alongside the student: a copy of the teacher's head that learns from H(F^t)."""

from __future__ import annotations

from collections import OrderedDict
from copy import deepcopy

from torch import Tensor, nn
from ultralytics.utils.torch_utils import copy_attr

from ds2d2_yolo.detectors.registry import DetectorModel
from ds2d2_yolo.distill.early import settled
from ds2d2_yolo.distill.levels import detect_head

ALONGSIDE = "alongside"  # the setting's word for it


def learner(teacher: nn.Module) -> nn.Module:
    """Return a trainable copy of ``teacher``'s head: the last and only layer of a model of the teacher's class.

    That model knows how such a head is trained and moved. Its ``epoch`` is the trainer's to set: losses of end-to-end
    heads go by it.
    """
    model = type(teacher).__new__(type(teacher))
    nn.Module.__init__(model)
    copy_attr(model, teacher, exclude=("training", "criterion"))
    # Not by its number: ``freeze=`` goes by those, and means the student's layers
    model.model = nn.Sequential(OrderedDict(head=deepcopy(detect_head(teacher))))
    model.criterion, model.epoch = None, 0
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".dfl" not in name)
    return model.train()


def learn(model: nn.Module, student: nn.Module, maps: list[Tensor], batch: dict, boost: float) -> tuple[Tensor, Tensor]:
    """Return the detector's ordinary loss of a ``learner``, without a graph to keep, and its mean for the log.

    Args:
        model: The learner.
        student: Its loss takes the gains and class weights of the student's.
        maps: The teacher's high-frequency maps on all of its levels, ``(B, C, H, W)`` each.
        batch: Ultralytics' batch.
        boost: Factor on the loss while half-precision layers are passed.
    """
    if getattr(model, "args", None) is not student.args:  # the trainer has set both by now
        model.args, model.class_weights = student.args, getattr(student, "class_weights", None)
        model.criterion = None if isinstance(model, DetectorModel) else model.init_criterion()
    if hasattr(model.criterion, "update") and model.criterion.updates != model.epoch:
        model.criterion.updates = model.epoch - 1
        model.criterion.update()
    loss, items = model.loss(batch, detect_head(model)(list(maps)))
    return settled(loss.sum(), model.parameters(), boost), sum(items.values()).detach()
