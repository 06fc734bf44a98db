"""A student-teacher pair as Ultralytics' own class: what an unfinished run's checkpoint holds."""

from __future__ import annotations

from torch import nn
from ultralytics.nn.distill_model import DistillationModel

OURS = ("_frozen", "_known", "settings", "balance", "levels", "boost", "turn")
OURS += ("measure_next", "renew_next", "learn_next")


def as_ultralytics(model: nn.Module, measured: dict) -> DistillationModel:
    """Return a view of a ``DS2D2Model`` that is Ultralytics' class, with ``measured`` beside the weights."""
    view = DistillationModel.__new__(DistillationModel)
    head = model.student_model.model[-1]  # Ultralytics' own search knows Ultralytics' heads only
    layers = [*(head.f if isinstance(head.f, list) else [head.i - 1]), head.i]
    hooks = {"_teacher_feats": {}, "_student_feats": {}, "_teacher_hooks": [], "_student_hooks": []}
    state = {k: v for k, v in model.__dict__.items() if k not in OURS}
    view.__dict__.update(state, ds2d2_balance=measured, feats_idx=layers, teacher_feats_idx=layers, dis=0.0, **hooks)
    if model.amplifier is not None:
        view._modules = {**model._modules, "amplifier": bare(model.amplifier)}
        view.amplifier.fingerprint = getattr(model.amplifier, "fingerprint", None)  # of the teacher it belongs to
    return view


def bare(module: nn.Module) -> nn.Module:
    """Return a tree of PyTorch's plainest modules with the parameters and buffers of ``module``, under their names.

    A checkpoint that holds it needs no other class.
    """
    plain = nn.Module()
    plain._parameters, plain._buffers = module._parameters, module._buffers
    plain._modules = {name: bare(child) for name, child in module._modules.items() if child is not None}
    return plain
