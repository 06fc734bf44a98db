"""Figures as files."""

from __future__ import annotations

import io
import os
from itertools import count
from pathlib import Path

from matplotlib.figure import Figure
from PIL.PngImagePlugin import PngImageFile

from ds2d2_yolo.errors import UserError
from ds2d2_yolo.report.files import replace


def picture_folder(settings: dict, name: str) -> Path:
    """Where a picture goes: ``save_dir``, or ``project``/``name``, from here; default: ``runs`` and ``name``."""
    if settings.get("save_dir"):
        return Path(str(settings["save_dir"]))
    return Path(str(settings.get("project") or "runs")) / str(settings.get("name") or name)


def place_for(path: Path, of: str | Path) -> Path:
    """The first of ``a.png``, ``a-2.png``, ... that is free, or holds a picture that `write_picture` made `of` this."""
    names = (path.with_stem(f"{path.stem}-{i}" if i > 1 else path.stem) for i in count(1))
    return next(file for file in names if not os.path.lexists(file) or _source(file) == _whole(of))


def _source(picture: Path) -> str | None:
    try:
        with PngImageFile(picture) as opened:
            return opened.info.get("Source")
    except (OSError, ValueError, SyntaxError):  # no picture, or a broken one
        return None


def _whole(path: str | Path) -> str:
    return os.path.abspath(path).encode("utf-8", "backslashreplace").decode()


def write_picture(figure: Figure, path: str | Path, of: str | Path = "") -> Path:
    """Write a figure as a PNG file and return its path; its folder is made. `of`: the file that it is a picture of.

    Raises UserError where it cannot be written.
    """
    path, buffer = Path(path), io.BytesIO()
    figure.savefig(buffer, dpi=100, metadata={"Source": _whole(of)} if of else None)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, lambda file: file.write(buffer.getvalue()))
    except OSError as error:
        said = f"cannot write the picture '{path}' ({error.strerror or error})"
        raise UserError(f"{said}; make room there, or name another folder: save_dir=") from error
    return path
