"""Ultralytics' check of mixed precision, without fetching the model that it would look at."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import ultralytics
from torch import nn
from ultralytics.utils.checks import check_amp

from ds2d2_yolo.errors import UserError


def check_amp_offline(model: nn.Module) -> bool:
    """Return whether mixed precision can be used on the model's device: GPUs known to fail are told by their names.

    Where Ultralytics' ``yolo26n.pt`` lies in its folder of weights, its predictions are compared, too.
    """
    with patch.object(ultralytics, "YOLO", _local):
        return check_amp(model)


def _local(weights: Path) -> ultralytics.YOLO:
    if not Path(weights).is_file():
        raise ConnectionError("nothing is fetched")  # Ultralytics then goes without
    try:
        return _YOLO(weights)
    except UserError as error:  # not a file that this run was told of
        raise ModuleNotFoundError(str(error)) from error


_YOLO = ultralytics.YOLO
