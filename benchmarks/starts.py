"""Models that start from another one's weights, also from those of a wider one."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import torch
from ultralytics import YOLO
from ultralytics.nn.tasks import load_checkpoint

from ds2d2_yolo.distill.inherit import evenly


def start_from(weights: str, model: str, path: Path) -> str:
    """Save a model that starts from a state dict and return its path.

    A narrower model takes evenly spaced channels of every tensor (weight selection, Xu et al., ICLR 2024). Halves of a
    concatenation stay apart as long as all of its parts shrink alike.
    """
    start = YOLO(model)
    state = state_of(weights)
    own = start.model.state_dict()
    picked = {k: narrowed(v.float(), own[k].shape) for k, v in state.items() if k in own and v.dim() == own[k].dim()}
    if len(picked) < len(own) / 2:  # of another head, such as YOLOv5's first, backbone and neck are most of it
        sys.exit(f"{weights} has {len(picked)} of {len(own)} tensors of {model}: it is not of this model")
    print(f"{len(picked)} of {len(own)} tensors of {model} start from {weights}")
    start.model.load_state_dict(picked, strict=False)
    start.save(path)
    return str(path)


def state_of(weights: str) -> dict[str, torch.Tensor]:
    """Return the state dict in a file of tensors, or that of a checkpoint's model."""
    try:
        found = torch.load(weights, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        found = {}
    state = found.get("state_dict", found)
    whole = state and all(isinstance(value, torch.Tensor) for value in state.values())
    return state if whole else load_checkpoint(weights)[0].state_dict()


def narrowed(tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Return evenly spaced entries of every axis that is longer than asked for."""
    for axis, size in enumerate(shape):
        tensor = tensor.index_select(axis, evenly(tensor.shape[axis], size))
    return tensor
