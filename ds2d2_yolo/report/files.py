"""Files that appear whole or not at all: what was there before stays until they are complete."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO


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
