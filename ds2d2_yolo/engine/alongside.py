"""What a trainer does for an amplifier that learns alongside its student: clipping, rating and keeping it (DS2D2)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import nn
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.utils import LOGGER

from ds2d2_yolo.distill.levels import detect_head
from ds2d2_yolo.distill.teacher import load_teacher
from ds2d2_yolo.engine.amplifier_trainer import with_high_frequency, write_amplifier
from ds2d2_yolo.engine.processes import is_first

FILE = "amplifier.pt"  # in the run's folder of weights


@contextmanager
def clipped_apart(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let Ultralytics clip these parameters' gradient by itself: their norm takes nothing of the others' step."""
    clip, apart = torch.nn.utils.clip_grad_norm_, {id(p): p for p in parameters}

    def both(every: Iterable[nn.Parameter], *args, **kwargs) -> torch.Tensor:
        clip(apart.values(), *args, **kwargs)
        return clip([p for p in every if id(p) not in apart], *args, **kwargs)

    with patch.object(torch.nn.utils, "clip_grad_norm_", both):
        yield


def keep(trainer: BaseTrainer, head: nn.Module) -> None:
    """Rate a trained amplifier's head on the validation images and keep it with the run.

    Every process takes part in the rating, the first one writes.
    """
    own = trainer.args
    teacher = load_teacher(own.teacher, channels=trainer.data["channels"])
    model = with_high_frequency(teacher, own.wavelet, own.wavelet_padding)
    detect_head(model).load_state_dict(head.state_dict())
    validator = trainer.get_validator()
    validator.args.plots = validator.args.verbose = validator.args.compile = False
    LOGGER.info("\nValidating the amplifier...")
    metrics = validator(model=model.to(trainer.device)) or {}
    if is_first():
        write_amplifier(head, teacher, own, metrics, FILE, [trainer.wdir])
