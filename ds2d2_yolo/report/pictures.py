"""Figures as files."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.figure import Figure

from ds2d2_yolo.errors import UserError


def picture_folder(settings: dict, name: str) -> Path:
    """Where a picture goes: ``save_dir``, or ``project``/``name``, from here; default: ``runs`` and ``name``."""
    if settings.get("save_dir"):
        return Path(str(settings["save_dir"]))
    return Path(str(settings.get("project") or "runs")) / str(settings.get("name") or name)


def write_picture(figure: Figure, path: str | Path) -> Path:
    """Write a figure as a PNG file and return its path; its folder is made.

    Raises UserError where it cannot be written.
    """
    path, buffer = Path(path), io.BytesIO()
    figure.savefig(buffer, dpi=100)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(buffer.getvalue())
    except OSError as error:
        said = f"cannot write the picture '{path}' ({error.strerror or error})"
        raise UserError(f"{said}; make room there, or name another folder: save_dir=") from error
    return path
