"""A folder of merged results: what it was merged from, and what an earlier run has left there."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from ds2d2_yolo.errors import UserError

CLAIM = "predictions.sha256"  # of the file that a result was merged from


def check_claim(target: Path, note: str | None) -> None:
    """Refuse a folder with the result of other predictions, or of a model where ``note`` says that it is of a file."""
    claim = target / CLAIM
    held = claim.read_text() if claim.is_file() else None
    tiles, result = target / "tiles", target / "predictions.json"
    if held != note and (held or tiles.exists() or result.exists()):
        raise UserError(
            f"'{target}' holds what was merged from {'other predictions' if held else 'a model or another file'}; "
            "delete it, or give another DEST"
        )
    own = tiles.is_dir() or (target / "scores.csv").is_file() or any(target.glob("Task*"))
    if note is None and result.exists() and not own:
        raise UserError(f"'{result}' was not merged from a model's detections; move it away, or give another DEST")


def clear(target: Path) -> None:
    """Remove submissions and scores from a folder that an earlier run has left them in, and no other file."""
    for task in ("Task1", "Task2"):
        folder = target / task
        for file in [*folder.glob(f"{task}_*.txt"), *folder.glob(f".{task}_*.part"), target / f"{task}.zip"]:
            file.unlink(missing_ok=True)
        with suppress(OSError):  # it is none, or holds something else
            folder.rmdir()
    (target / "scores.csv").unlink(missing_ok=True)
