"""CPU threads of PyTorch: as many as ``OMP_NUM_THREADS`` says, else one a core, up to Ultralytics' 8.

Ultralytics takes one less than there are cores on a CPU, whatever that variable says (it also sets it to 1 where it is
not set), and loads images in the same process, so that a core is idle: half of a machine of two. Importing this module
puts another number in its place.
"""

from __future__ import annotations

import os

import psutil
from ultralytics.utils import torch_utils

MOST = 8  # small convolutions gain little from more


def cpu_threads(given: str | None, cores: int) -> int:
    """Return the number of threads.

    Args:
        given: ``OMP_NUM_THREADS`` as the user has set it; of a list, one number a nested level, the first counts.
        cores: Cores that this process may use.
    """
    first = (given or "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else max(1, min(MOST, cores))


def _given() -> str | None:
    """``OMP_NUM_THREADS`` as this process was started with, before Ultralytics was imported."""
    try:
        return psutil.Process().environ().get("OMP_NUM_THREADS")
    except (psutil.Error, OSError):
        return os.environ.get("OMP_NUM_THREADS")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


torch_utils.NUM_THREADS = cpu_threads(_given(), _cores())  # for its `select_device`, which every run passes
