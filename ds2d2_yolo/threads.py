"""CPU threads of PyTorch: as many as ``OMP_NUM_THREADS`` says, else one a core, up to Ultralytics' 8.

Ultralytics takes one less than there are cores on a CPU, whatever that variable says (it also sets it to 1 where it is
not set), and loads images in the same process, so that a core is idle: half of a machine of two. Importing this module
puts another number in its place.
"""

from __future__ import annotations

import os
import sys

import psutil
from ultralytics.nn.backends import litert
from ultralytics.utils import torch_utils

from ds2d2_yolo import OMP_NUM_THREADS

MOST = 8  # small convolutions gain little from more
NAME = "OMP_NUM_THREADS"


def cpu_threads(given: str | None, cores: int) -> int:
    """Return the number of threads.

    Args:
        given: ``OMP_NUM_THREADS`` as the user has set it; of a list, one number a nested level, the first counts.
        cores: Cores that this process may use.
    """
    first = (given or "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else max(1, min(MOST, cores))


def users(now: str | None, before: str | None, platform: str = sys.platform) -> str | None:
    """Return ``OMP_NUM_THREADS`` as the user has set it, ``None`` where only Ultralytics has.

    Args:
        now: Its value.
        before: Its value when this package was imported, if that was before Ultralytics.
        platform: As in ``sys.platform``.
    """
    if now != "1" or before is not None:  # Ultralytics sets it to 1, and only where it is not set
        return now
    if platform == "win32":  # tells the process's environment as it is now
        return None
    try:
        return psutil.Process().environ().get(NAME)
    except (psutil.Error, OSError):
        return None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_given = users(os.environ.get(NAME), OMP_NUM_THREADS)
if _given is None:
    os.environ.pop(NAME, None)  # Ultralytics', which processes started from here would take for the user's
# Ultralytics' `select_device`, which every run passes, and its LiteRT, which is timed beside PyTorch
torch_utils.NUM_THREADS = litert.NUM_THREADS = cpu_threads(_given, _cores())
