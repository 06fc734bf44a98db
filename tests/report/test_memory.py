import json
import os
import subprocess
import sys

import numpy as np
import pytest

from ds2d2_yolo.report import latency, memory
from ds2d2_yolo.report.memory import peak_memory
from tests.helpers.costing import one_convolution

GIVEN_BACK = """
import threading
import numpy as np
from ds2d2_yolo.report.memory import Resident

with Resident() as resident:
    block = np.ones(25_000_000)  # 200 MB
    threading.Event().wait(0.2)
    del block
print(resident.peak_mb)
"""


def test_memory_that_was_given_back_still_counts():
    # In a process of its own: in this one, what earlier tests left may be freed meanwhile and be missing in the growth
    done = subprocess.run([sys.executable, "-c", GIVEN_BACK], capture_output=True, text=True, check=True)
    assert 199 < float(done.stdout) < 230


def test_a_fresh_process_tells_what_inference_takes(tmp_path, monkeypatch):
    # The input is 25.2 MB, and the outputs, 7 numbers for each cell of 2 x 2 pixels, are 14.7 MB
    monkeypatch.chdir(tmp_path)
    file = one_convolution(tmp_path / "a.onnx", score=0.1)
    peak = peak_memory(os.path.relpath(file), np.zeros((2, 1024, 1024, 3), np.uint8), 2, "cpu")
    assert 39.8 < peak < 200


def test_the_fresh_process_runs_what_was_asked_for(tmp_path, monkeypatch):
    asked, how = [], {"end2end": True, "fp16": False}

    def run(command, **_):
        *_, module, given = command
        assert module == "ds2d2_yolo.report.memory"
        return subprocess.CompletedProcess(command, 0, json.dumps(memory.main(*json.loads(given))), "")

    def prepared(*args, **options):
        asked.append(options)
        return prepare(*args)

    prepare = latency.prepare
    monkeypatch.setattr(latency, "prepare", prepared)
    monkeypatch.setattr(memory.subprocess, "run", run)
    assert peak_memory(one_convolution(tmp_path / "a.onnx"), np.zeros((1, 32, 32, 3), np.uint8), 1, "cpu", **how) >= 0
    assert asked == [how]


@pytest.mark.parametrize(
    "code, output, why",
    [(1, "Traceback\n  a line\nMemoryError: no more\n\n", "^MemoryError: no more$"), (-9, "", "ended with code -9")],
)
def test_a_process_that_fails_says_why(monkeypatch, code, output, why):
    monkeypatch.setattr(
        memory.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, code, "started", output)
    )
    with pytest.raises(RuntimeError, match=why):
        peak_memory("best.pt", np.zeros((1, 32, 32, 3), np.uint8), 1, "cpu")
