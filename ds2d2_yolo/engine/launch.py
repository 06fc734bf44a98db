"""Ultralytics' ``device=0,1`` starts a launcher of processes and waits for it; an interruption must reach them all."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

from ultralytics.engine import trainer
from ultralytics.utils import dist

from ds2d2_yolo.errors import UserError

PATIENCE = 60  # seconds; the launcher gives its own processes 30 of them


class ChildFailed(UserError):
    """A process that was started for one of several devices has failed."""


def run(command: list[str], check: bool = False) -> subprocess.CompletedProcess:
    """Run a launcher as ``subprocess.run`` does, but end it with SIGTERM: killed, it would leave its processes behind.

    Raises:
        ChildFailed: It failed, and ``check`` is set.
        KeyboardInterrupt: This process was interrupted; the launcher has ended by then.
    """
    launcher = subprocess.Popen(command)
    try:
        code = launcher.wait()
    except BaseException:
        launcher.terminate()
        with suppress(subprocess.TimeoutExpired):  # the interruption is what is to be seen
            launcher.wait(PATIENCE)
        launcher.kill()
        raise
    if check and code:
        raise ChildFailed(f"a process of device= has failed (exit code {code}); what it said stands above")
    return subprocess.CompletedProcess(command, code)


@contextmanager
def ending_together() -> Iterator[None]:
    """Let Ultralytics' trainer start its processes by ``run``, after ``emptied``, while the context lasts."""
    with (
        patch.object(trainer, "subprocess", SimpleNamespace(run=run)),
        patch.object(dist, "shutil", SimpleNamespace(rmtree=emptied)),
    ):
        yield


def emptied(folder: str | Path) -> None:
    """Remove a run's folder, as Ultralytics does before it starts processes, but for amplifiers, which others use."""
    for path in sorted(Path(folder).rglob("*"), reverse=True):  # what is in a folder before the folder
        if path.is_dir() and not path.is_symlink():
            with suppress(OSError):  # it holds one
                path.rmdir()
        elif not path.match("*-amplifier-*.pt"):
            path.unlink()
    with suppress(OSError):
        Path(folder).rmdir()
