"""CPU threads: what the user says, else every core, in whatever order the packages are imported."""

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds2d2_yolo.threads import MOST, cpu_threads

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@pytest.mark.parametrize(
    ("said", "cores", "expected"),
    [
        (None, 2, 2),  # Ultralytics: 1
        ("", 4, 4),
        (None, 64, MOST),
        ("1", 64, 1),
        ("16", 4, 16),
        (" 3,2 ", 64, 3),
        ("0", 2, 2),
        ("many", 2, 2),
        ("-1", 2, 2),
    ],
)
def test_known_numbers(said, cores, expected):
    assert cpu_threads(said, cores) == expected


@given(st.none() | st.text(max_size=5), st.integers(0, 1024))
def test_there_is_always_one(said, cores):
    assert cpu_threads(said, cores) >= 1


@pytest.mark.parametrize("said", [None, "3"])
def test_what_a_run_gets(said):
    """Also where Ultralytics, which sets the variable, was imported first."""
    code = "from ultralytics import YOLO\nfrom ds2d2_yolo import DS2D2Trainer\nimport torch\n"
    code += "from ultralytics.utils.torch_utils import select_device\n"
    code += "select_device('cpu', verbose=False)\nprint(torch.get_num_threads())"
    own = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | ({"OMP_NUM_THREADS": said} if said else {})
    done = subprocess.run([sys.executable, "-c", code], env=own, capture_output=True, text=True)
    assert done.stdout.strip() == (said or str(min(MOST, CORES))), done.stderr
