"""Checkpoints appear whole or not at all: a full disk or a kill leaves the last good file."""

from __future__ import annotations

import os
from pathlib import Path

from ultralytics.nn import tasks
from ultralytics.utils.torch_utils import strip_optimizer

import ds2d2_yolo.restricted  # noqa: F401  so that checkpoints run nothing


class AtomicPath(type(Path())):
    """A path whose ``write_bytes`` writes beside the file and then takes its place; paths made from it do the same."""

    def write_bytes(self, data: bytes) -> int:
        """Write ``data`` to the file in one step; on any error the old file stays and nothing else is left.

        Raises:
            OSError: The data could not be written.
        """
        partial = Path(f"{self}.partial")
        try:
            with open(partial, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        return len(data)


def strip(path: Path) -> None:
    """Turn the checkpoint of a training into a released one, as Ultralytics does, but in one step.

    Raises:
        OSError, RuntimeError: The stripped file could not be written; the old one is untouched.
        UserError: It is not of this run, and would run something or cannot be read.
    """
    # The best.pt beside a last.pt that was resumed may come from anywhere, and Ultralytics unpickles it unrestricted:
    # what was looked through must also be what PyTorch's restricted unpickler can read
    tasks.torch_safe_load(path)
    partial = Path(f"{path}.partial")
    try:
        strip_optimizer(path, s=str(partial))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
