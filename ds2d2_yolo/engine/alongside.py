"""What a trainer does for an amplifier that has learned alongside its student: rating and keeping it (DS2D2)."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.utils import LOGGER
from ultralytics.utils.callbacks import get_default_callbacks

from ds2d2_yolo.distill.levels import detect_head
from ds2d2_yolo.distill.model import DS2D2Model
from ds2d2_yolo.engine import settings
from ds2d2_yolo.engine.amplifier_file import write_amplifier
from ds2d2_yolo.engine.amplifier_trainer import with_high_frequency
from ds2d2_yolo.engine.processes import is_first

FILE = "amplifier.pt"  # in the run's folder of weights


def keep(trainer: BaseTrainer, learner: nn.Module | None, metrics: dict | None = None) -> None:
    """Keep a trained amplifier with the run of its student; the first process writes.

    Args:
        trainer: The student's.
        learner: The amplifier; None: there is nothing to do.
        metrics: What its rating found; None: it has not been rated yet.
    """
    if learner is not None and is_first():
        write_amplifier(detect_head(learner), learner.fingerprint, trainer.args, metrics, FILE, [trainer.wdir])


def rate(trainer: BaseTrainer, model: DS2D2Model | None, learner: nn.Module | None) -> None:
    """Rate a trained amplifier on the validation images, and keep what was found; every process takes part.

    Args:
        trainer: The student's.
        model: The student's, whose teacher, without a head, was asked in training: its file may be gone by now.
        learner: The amplifier; None: there is nothing to do.
    """
    if learner is None:
        return
    whole = deepcopy(model._frozen.teacher)
    whole.model[-1] = deepcopy(detect_head(learner)).float()
    whole = with_high_frequency(whole.float(), *settings.high_pass(trainer.args))
    validator = trainer.get_validator()
    validator.callbacks = get_default_callbacks()  # the user's hear of the student alone
    validator.args.plots = validator.args.verbose = validator.args.compile = False
    LOGGER.info("\nValidating the amplifier...")
    with trainer.validating(), TemporaryDirectory() as folder:  # detections that are saved are the student's
        validator.save_dir = Path(folder)
        keep(trainer, learner, validator(model=whole.to(trainer.device)) or {})
