"""What the training of a high-frequency amplifier leaves, told from detectors."""

from __future__ import annotations

from pathlib import Path

from ultralytics.utils import YAML

from ds2d2_yolo.errors import UserError


def is_stage(model) -> bool:
    """Whether a model is what an amplifier's stage has left: its head looks at high frequencies."""
    return any(type(layer).__name__ == "HighFrequency" for layer in getattr(model, "model", ()))


def refuse_stage(model, named: str) -> None:
    """Refuse as a detector what an amplifier's stage has left.

    Raises:
        UserError: It is that.
    """
    if is_stage(model):
        teacher = (getattr(model, "args", None) or {}).get("teacher")
        hint = f"; its teacher is '{teacher}'" if teacher else ""
        raise UserError(f"{named} is of a high-frequency amplifier's stage and no detector{hint}")


def is_stage_folder(folder: Path) -> bool:
    """Whether a run's folder says of itself that it is of an amplifier's stage."""
    if not folder.name.endswith("-amplifier"):  # a student may start from its teacher's file, too
        return False
    arguments = folder / "args.yaml"
    made = YAML.load(arguments) if arguments.is_file() else {}
    # A stage goes on from its teacher; one that was resumed from itself, and its arguments know of the student
    return bool(made.get("student_run") or (made.get("teacher") and made.get("model") == made["teacher"]))
