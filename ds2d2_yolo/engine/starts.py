"""Where a student's first weights come from, and files of a run that the run itself would write over."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb

import torch
from torch import nn
from ultralytics.nn import distill_model
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils import LOGGER, SETTINGS
from ultralytics.utils.checks import check_yolov5u_filename

import ds2d2_yolo.restricted  # noqa: F401  so that checkpoints run nothing
from ds2d2_yolo.errors import UserError

SMALLER = 0.7  # of the student's size: families of one class of size differ by less
FAMILIAR = 1.25  # how much larger or smaller images may be than those that a teacher was trained on
BEGUN = "student.pt"  # beside a stage's checkpoints, until the student has one of its own


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


def keep_begun(file: Path, student: nn.Module | None) -> None:
    """Write what a student will begin with where no argument of its run names its weights; else remove ``file``."""
    if student is None:
        return file.unlink(missing_ok=True)
    buffer = io.BytesIO()
    torch.save({"model": student}, buffer)
    file.write_bytes(buffer.getvalue())


def check_not_written_over(args, folder: Path) -> None:
    """Refuse a teacher or an amplifier among the weights that a new run in ``folder`` would replace.

    Raises:
        UserError: Names it.
    """
    for key in ("teacher", "distill_model", "amplifier"):
        file = getattr(args, key, None)
        if isinstance(file, (str, Path)) and Path(file).resolve().parent == (folder / "weights").resolve():
            raise UserError(
                f"{key} '{file}' lies in this run's own folder and would be written over: give another name="
            )


def check_learns(student: nn.Module, frozen: list[int | str], freeze, resumed: bool) -> None:
    """Refuse a student of which a teacher can change nothing: it acts on what comes before the head.

    Args:
        student: The student by itself.
        frozen: Layers that stay as they are, as ``freeze`` has them.
        freeze: The setting itself, to be named.
        resumed: A run on its way, which may end as it likes: a line in the log will do.

    Raises:
        UserError: All of it is frozen, or all but its head.
    """
    names = [f"model.{layer}." for layer in frozen] + [".dfl"]  # as Ultralytics looks for them
    left = [key for key, _ in student.named_parameters() if not any(name in key for name in names)]
    if not left:
        raise UserError(f"freeze={freeze} leaves nothing of the student to train; freeze fewer layers")
    if all(key.startswith(f"model.{len(student.model) - 1}.") for key in left):
        said = f"freeze={freeze} leaves the student's head alone to train, and a teacher acts on the layers before it"
        if not resumed:
            raise UserError(f"{said}; freeze fewer layers, or leave teacher= out")
        LOGGER.warning(f"{said}: from here on it changes nothing")


def warn_of_pair(
    model: str | Path | nn.Module, teacher: str, student: nn.Module, master: nn.Module, imgsz: int | list[int]
) -> None:
    """Warn of a teacher that is the student's own file, smaller than the student, or used to another image size."""
    ours, theirs = (sum(p.numel() for p in one.parameters()) for one in (student, master))
    if isinstance(model, (str, Path)) and Path(model).is_file() and Path(model).samefile(teacher):
        LOGGER.warning(f"model= and teacher= are the same file, '{teacher}': such a teacher knows nothing more")
    elif theirs < SMALLER * ours:
        sizes = f"{theirs / 1e6:.1f} M parameters and the student {ours / 1e6:.1f} M"
        LOGGER.warning(f"teacher '{teacher}' has {sizes}: are the two swapped?")
    sizes = (getattr(master, "trained_at", None), imgsz)
    used, imgsz = (max(size) if isinstance(size, (list, tuple)) else size for size in sizes)
    if isinstance(used, int) and isinstance(imgsz, int) and not 1 / FAMILIAR <= used / imgsz <= FAMILIAR:
        LOGGER.warning(
            f"teacher '{teacher}' was trained at {used} px and sees images of {imgsz} px here, where it may know less: "
            f"rate it by val.py model={teacher} data=... imgsz={imgsz}, or train it at that size"
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
        *_, (frame, _) = walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__") != distill_model.__name__:  # the loaders are made on the same way
            raise
        named = type(student).__name__ if isinstance(student, nn.Module) else student
        raise UserError(
            f"distill_model '{teacher}' cannot teach model '{named}' ({error}); "
            "teacher= takes every pair that shares a stride"
        ) from error
