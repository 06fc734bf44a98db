"""Where a student's first weights come from, and files of a run that the run itself would write over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils import SETTINGS
from ultralytics.utils.checks import check_yolov5u_filename

import ds2d2_yolo.restricted  # noqa: F401  so that checkpoints run nothing
from ds2d2_yolo.errors import UserError

MADE = ("best.pt", "last.pt")


def local(key: str, weights: str | Path) -> str:
    """Where weights that setting ``key`` names lie, found as Ultralytics finds them, but never fetched.

    Raises:
        UserError: They are not on this machine.
    """
    file = Path(check_yolov5u_filename(str(weights), verbose=False))
    places = (file, Path(SETTINGS["weights_dir"]) / file)
    if (found := next((str(place) for place in places if place.is_file()), None)) is None:
        raise UserError(f"{key} '{weights}' does not exist; weights are never fetched: give a local .pt file")
    return found


def student_of(*args, **kwargs) -> tuple[nn.Module, dict]:
    """Load a checkpoint; of an unfinished distilled run the student."""
    model, ckpt = load_checkpoint(*args, **kwargs)
    return getattr(model, "student_model", model), ckpt


def check_not_written_over(teacher: str | Path, folder: Path) -> None:
    """Refuse a teacher that a new run's own checkpoints would replace.

    Raises:
        UserError: It is the ``best.pt`` or ``last.pt`` of the run's folder.
    """
    file = Path(teacher).resolve()
    if file in [(folder / "weights" / name).resolve() for name in MADE]:
        raise UserError(
            f"teacher '{teacher}' lies in this run's own folder and would be written over: give another name="
        )


@contextmanager
def paired_by_ultralytics(student: str | Path | nn.Module, teacher: str | None) -> Iterator[None]:
    """Name both where Ultralytics' own distillation cannot pair them.

    Raises:
        UserError: It cannot.
    """
    try:
        yield
    except ValueError as error:
        if not teacher:
            raise
        named = type(student).__name__ if isinstance(student, nn.Module) else student
        raise UserError(
            f"distill_model '{teacher}' cannot teach model '{named}' ({error}); "
            "teacher= takes every pair that shares a stride"
        ) from error
