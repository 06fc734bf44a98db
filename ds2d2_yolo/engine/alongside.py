"""What a trainer does for an amplifier that learns alongside its student: clipping, rating and keeping it (DS2D2)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch
from torch import nn
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.utils import LOGGER

from ds2d2_yolo.distill.levels import detect_head
from ds2d2_yolo.engine import settings
from ds2d2_yolo.engine.amplifier_file import write_amplifier
from ds2d2_yolo.engine.amplifier_trainer import with_high_frequency
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


def keep(trainer: BaseTrainer, teacher: nn.Module, learner: nn.Module) -> None:
    """Rate a trained amplifier on the validation images and keep it with the run.

    Every process takes part in the rating, the first one writes.

    Args:
        trainer: The student's.
        teacher: As it was asked in training, without a head: its file may be gone by now.
        learner: The amplifier.
    """

    def write(metrics: dict | None) -> None:
        if is_first():
            write_amplifier(detect_head(learner), learner.fingerprint, trainer.args, metrics, FILE, [trainer.wdir])

    write(None)  # rating takes long, and may be interrupted
    whole = deepcopy(teacher)
    whole.model[-1] = deepcopy(detect_head(learner)).float()
    model = with_high_frequency(whole.float(), *settings.high_pass(trainer.args))
    validator = trainer.get_validator()
    validator.args.plots = validator.args.verbose = validator.args.compile = False
    LOGGER.info("\nValidating the amplifier...")
    with TemporaryDirectory() as folder:  # detections that are saved are the student's
        validator.save_dir = Path(folder)
        write(validator(model=model.to(trainer.device)) or {})
