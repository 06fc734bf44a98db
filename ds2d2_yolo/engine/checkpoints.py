"""Checkpoints appear whole or not at all: a full disk or a kill leaves the last good file."""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

from ultralytics.nn import tasks
from ultralytics.utils import LOGGER, torch_utils

from ds2d2_yolo import restricted  # also so that checkpoints run nothing
from ds2d2_yolo.errors import UserError


class AtomicPath(type(Path())):
    """A path whose ``write_bytes`` writes beside the file and then takes its place; paths made from it do the same."""

    def write_bytes(self, data: bytes) -> int:
        """Write ``data`` to the file in one step; on any error the old file stays and nothing else is left.

        Raises:
            OSError: The data could not be written.
        """
        write_whole(self, data, Path(f"{self}.partial"))
        restricted.written(data)
        return len(data)


def write_whole(path: Path, data: bytes, partial: Path) -> None:
    """Write ``data`` to ``partial``, which then takes the place of ``path``; on any error the old file stays alone.

    Raises:
        OSError: The data could not be written.
    """
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def strip(path: Path, updates: dict | None = None, stripped: Path | None = None) -> dict:
    """Turn the checkpoint of a training into a released one, as Ultralytics does, but in one step.

    Args:
        path: The checkpoint.
        updates: Entries that replace its own.
        stripped: What comes of it, where that lies elsewhere already.

    Returns:
        What was written, unless it was there already.

    Raises:
        UserError: It is not of this run, and would run something or cannot be read; or the stripped file could not be
            written. The old one is untouched.
    """
    partial = Path(f"{path}.partial")
    try:
        written = {}
        if stripped:
            shutil.copyfile(stripped, partial)
        else:
            written = _strip_to(partial, path, updates)
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch.save hides a full disk behind the latter
        raise UserError(f"cannot write the stripped {path} (is the disk full? {error}); it stays as trained") from error
    finally:
        partial.unlink(missing_ok=True)
    LOGGER.info(f"Optimizer stripped from {path}, {Path(path).stat().st_size / 1e6:.1f}MB")
    return written


def _strip_to(partial: Path, path: Path, updates: dict | None) -> dict:
    # The best.pt beside a last.pt that was resumed may come from anywhere, and Ultralytics unpickles unrestricted
    checkpoint, _ = tasks.torch_safe_load(path)
    arguments = checkpoint.get("train_args") or {}
    if arguments.get("student_run"):  # a stage's: with all of them the student can still follow
        updates = {**(updates or {}), "train_args": arguments}
    quiet = SimpleNamespace(info=lambda _: None, warning=LOGGER.warning)  # it would name the partial file
    with patch.multiple(torch_utils, torch_load=lambda *_, **__: checkpoint, LOGGER=quiet):
        written = torch_utils.strip_optimizer(path, s=str(partial), updates=updates)
    if not written:
        raise UserError(f"cannot strip {path}: it holds no model")
    restricted.written(partial)
    return written


def stripping(last: Path, best: Path) -> Callable[..., dict]:
    """Return a ``strip`` for ``last`` and, after it, ``best``, which is unpickled only where it is another file."""
    same = False

    def strip_or_copy(path: Path, updates: dict | None = None) -> dict:
        nonlocal same
        if path == last:
            same = best.exists() and filecmp.cmp(last, best, shallow=False)
        return strip(path, updates, last if same and path == best else None)

    return strip_or_copy


def renew_best(best: Path, last: Path, ckpt: dict) -> None:
    """Make up for a ``best.pt`` that an interruption kept from being written after ``last``, which has the best epoch.

    Args:
        best: The run's best checkpoint, or where it belongs.
        last: The checkpoint that is resumed.
        ckpt: What it holds.
    """
    fitness = (ckpt.get("train_metrics") or {}).get("fitness")
    if fitness is None or fitness != ckpt.get("best_fitness"):
        return
    if best.exists() and not -1 < tasks.torch_safe_load(best)[0].get("epoch", -1) < ckpt["epoch"]:
        return  # a later one is better yet, where an earlier checkpoint was named
    best.parent.mkdir(parents=True, exist_ok=True)
    best.write_bytes(Path(last).read_bytes())


def keep_rows(csv: Path, epochs: int) -> None:
    """Keep the rows of ``results.csv`` for so many epochs; a power cut may have left others, halves, or nothing."""
    header, *rows = csv.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) or [""]
    if not (header.strip().startswith("epoch") and header.endswith("\n")):
        return csv.unlink()  # Ultralytics begins it anew, with a header

    def lived(row: str) -> bool:
        with suppress(ValueError):
            return row.endswith("\n") and row.count(",") == header.count(",") and float(row.split(",")[0]) <= epochs
        return False

    csv.write_text("".join([header, *filter(lived, rows)]), encoding="utf-8")
