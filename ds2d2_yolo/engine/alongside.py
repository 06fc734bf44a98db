"""What a trainer does for an amplifier that has learned alongside its student: rating and keeping it (DS2D2)."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.utils import LOGGER

from ds2d2_yolo.distill.levels import detect_head
from ds2d2_yolo.engine import settings
from ds2d2_yolo.engine.amplifier_file import write_amplifier
from ds2d2_yolo.engine.amplifier_trainer import with_high_frequency
from ds2d2_yolo.engine.processes import is_first

FILE = "amplifier.pt"  # in the run's folder of weights


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
