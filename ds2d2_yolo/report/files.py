"""Files that appear whole or not at all: what was there before stays until they are complete."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from ds2d2_yolo.errors import UserError


def replace(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill an open file that takes `path`'s place when it is complete.

    Raises:
        OSError: It cannot be written.
    """
    draft = path.with_name(f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}.part")  # of any name's length
    try:
        with open(draft, "wb") as file:
            write(file)
        draft.replace(path)
    finally:
        with suppress(OSError):  # the folder itself may be none
            draft.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Write a text, as `replace` does; what UTF-8 has no place for is escaped."""
    replace(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))


def take_place(new: Path, target: Path, staging: Path) -> None:
    """Move a finished file or folder to its place; what was there goes only when the new one is in.

    Args:
        new: The finished one.
        target: Its place, on the same disk.
        staging: A folder for what was there, to be removed afterwards.

    Raises:
        UserError: A file would take the place of a folder, and of all that is in it.
        OSError: It cannot be moved.
    """
    if not target.is_dir():
        new.replace(target)
        return
    if not new.is_dir():
        raise UserError(f"{target} is a folder, and the new file has its name: move the folder away")
    old = staging / "replaced"
    target.replace(old)
    try:
        new.replace(target)
    except OSError:
        old.replace(target)
        raise
