import json
import os
import subprocess
import sys

import numpy as np
import pytest

from ds2d2_yolo.report import latency, memory
from ds2d2_yolo.report.memory import peak_memory
from tests.helpers.costing import one_convolution

MEASURED = """
import gc, json, sys, threading
gc.disable()  # it takes a fifth of the time to import PyTorch
import numpy as np
from ds2d2_yolo.report import memory

with memory.Resident() as resident:
    block = np.ones(25_000_000)  # 200 MB
    threading.Event().wait(0.2)
    del block
model, *sizes = sys.argv[1:]
first, *peaks = (memory.main(model, file, 2, "cpu", False, {}) for file in (sizes[0], *sizes))
print(json.dumps([resident.peak_mb, *peaks]))  # without the first, which took what stays taken
"""
SIZES = (512, 1024)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What a process of its own tells of 200 MB that are given back, and of inference at both sizes.

    In this one, what earlier tests left may be freed meanwhile and be missing in the growth; so that it is not so in
    that one either, blocks of some size go back to the system at once.
    """
    folder = tmp_path_factory.mktemp("measured")
    for size in SIZES:
        np.save(folder / f"{size}.npy", np.zeros((2, size, size, 3), np.uint8))
    files = [one_convolution(folder / "a.onnx", score=0.1), *(folder / f"{size}.npy" for size in SIZES)]
    command = [sys.executable, "-c", MEASURED, *map(str, files)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_memory_that_was_given_back_still_counts(measured):
    assert 199 < measured[0] < 230


def test_memory_grows_with_the_size(measured):
    """Three quarters of what the larger size needs at the least, see the next test, and at most three times that."""
    _, small, large = measured
    assert 0.75 * 39.8 < large - small < 3 * 0.75 * 39.8
    assert 39.8 / 4 < small < 39.8


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
