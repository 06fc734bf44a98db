"""How much memory inference takes at most, seen in a fresh process that holds nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import psutil

import ds2d2_yolo
from ds2d2_yolo.restricted import is_trusting, trusted

TURNS = 3  # batches that are run under watch
INTERVAL_S = 0.001


def peak_memory(model_path, images: np.ndarray, batch: int, device="", **how) -> float | None:
    """Memory of a detector's weights and inference at its peak, in MB (10^6 bytes), None where it cannot be told.

    On a CPU the growth of the process beyond its libraries; on a GPU what PyTorch allocates there. `images` is (N, H,
    W, C) uint8 with the size they are run at; `how` is `runtimes.load`'s: end2end, fp16.

    Raises:
        RuntimeError: The process failed; its last line of output says why.
    """
    root = str(Path(ds2d2_yolo.__file__).parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "images.npy"
        np.save(file, images)
        given = json.dumps([str(Path(model_path).absolute()), str(file), batch, str(device), is_trusting(), how])
        command = [sys.executable, "-m", "ds2d2_yolo.report.memory", given]
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
        )
    lines = [line for line in (done.stdout if done.returncode == 0 else done.stderr).splitlines() if line.strip()]
    if done.returncode or not lines:
        raise RuntimeError(lines[-1] if lines else f"the process ended with code {done.returncode}")
    return json.loads(lines[-1])


class Resident:
    """Watches the memory of this process while the block runs: `peak_mb` is the growth since its start."""

    def __enter__(self) -> Resident:
        self._process, self._over = psutil.Process(), threading.Event()
        self._start = self._peak = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(INTERVAL_S):
            self._look()

    def _look(self) -> None:
        self._peak = max(self._peak, self._process.memory_info().rss)

    def __exit__(self, *_) -> None:
        self._over.set()
        self._thread.join()
        self._look()

    @property
    def peak_mb(self) -> float:
        return (self._peak - self._start) / 1e6


def main(model_path: str, file: str, batch: int, device: str, trust: bool, how: dict) -> float | None:
    """What the fresh process does: load, run some batches, and tell the peak."""
    import torch
    from ultralytics.utils.torch_utils import select_device

    from ds2d2_yolo.report.latency import prepare

    images = list(np.load(file))
    where = select_device(device, verbose=False)
    if where.type not in ("cpu", "cuda"):
        return None
    _load_libraries(model_path)
    with trusted(trust), Resident() as resident:
        runner = prepare(model_path, images, images[0].shape[:2], batch, device, **how)
        if where.type == "cuda":  # in half precision loading takes more than running: float32 weights come first
            torch.cuda.reset_peak_memory_stats(where)
        for _ in range(TURNS):
            runner.once()
    if where.type == "cpu":
        return resident.peak_mb
    # What ONNX Runtime allocates on the GPU, PyTorch does not see
    return torch.cuda.max_memory_allocated(where) / 1e6 if runner.loaded.device.type == "cuda" else None


def _load_libraries(model_path: str) -> None:
    """What is there before any model: the runtimes' code, and their threads."""
    import torch
    from torch import nn

    if model_path.endswith(".onnx"):
        import onnxruntime  # noqa: F401
    with torch.inference_mode():
        nn.Conv2d(3, 8, 3)(torch.rand(1, 3, 32, 32)).relu().sum()


if __name__ == "__main__":
    print(json.dumps(main(*json.loads(sys.argv[1]))))
