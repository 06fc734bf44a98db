"""CPU threads: what the user says, else every core, in whatever order the packages are imported."""

import os
import subprocess
import sys

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds2d2_yolo.threads import MOST, cpu_threads, users

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


@pytest.mark.parametrize(
    ("now", "before", "started", "expected"),
    [
        ("1", None, None, None),  # Ultralytics has set it
        ("1", None, "1", "1"),
        ("1", "1", None, "1"),  # a script has, before both packages
        ("5", None, None, "5"),  # a script has, between them
        ("5", "5", "5", "5"),
    ],
)
def test_whose_number_it_is(now, before, started, expected, monkeypatch):
    own = {} if started is None else {"OMP_NUM_THREADS": started}
    monkeypatch.setattr(psutil.Process, "environ", lambda self: own)
    assert users(now, before, "linux") == expected
    monkeypatch.setattr(psutil.Process, "environ", lambda self: {"OMP_NUM_THREADS": now})  # as Windows tells it
    assert users(now, before, "win32") == (None if (now, before) == ("1", None) else expected)

    def refuse(self):
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil.Process, "environ", refuse)
    assert users("1", None, "linux") is None


@pytest.mark.parametrize("said", [None, str(CORES + 2)])
def test_what_a_run_gets(said):
    """Also where Ultralytics, which sets the variable, came first; processes started from there get the same."""
    code = "from ultralytics import YOLO\nimport os\nassert os.environ['OMP_NUM_THREADS']\n"
    code += "from ds2d2_yolo import DS2D2Trainer\nfrom ultralytics.utils.torch_utils import select_device, torch\n"
    code += "select_device('cpu', verbose=False)\nprint(torch.get_num_threads(), os.environ.get('OMP_NUM_THREADS'))"
    own = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | ({"OMP_NUM_THREADS": said} if said else {})
    done = subprocess.run([sys.executable, "-c", code], env=own, capture_output=True, text=True)
    assert done.stdout.split() == [said or str(min(MOST, CORES)), str(said)], done.stderr
