"""Whether a checkpoint stands on Ultralytics alone, as on a machine where this package was never installed."""

import json
import os
import subprocess
import sys

import torch
from ultralytics import YOLO

_SCRIPT = """
import gc, json, sys
gc.disable()  # it takes a fifth of the time to import PyTorch

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ds2d2_yolo":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
from ultralytics import YOLO
from ultralytics.nn import tasks

checkpoints, images = json.loads(sys.argv[1])
asked = {"conf": 0.01, "device": "cpu", "save": False, "verbose": False}
for restricted in (False, True):  # in this order: what restricted loading has registered, it would leave registered
    tasks.SAFE_LOAD = restricted  # as ULTRALYTICS_SAFE_LOAD=true does
    results = [result for checkpoint in checkpoints for result in YOLO(checkpoint).predict(images, **asked)]
    assert (tasks._SafeLoad._registry is not None) == restricted, "restricted loading is not what was asked for"
    print("BOXES", json.dumps([result.boxes.data.tolist() for result in results]))
assert "ds2d2_yolo" not in sys.modules
"""


def assert_loads_alone(best_pt, images, *others):
    """Asserts that Ultralytics loads `best_pt` and finds the same boxes where `ds2d2_yolo` cannot be imported, by
    ordinary and by restricted (weights-only) loading.

    Args:
        best_pt: path of the checkpoint.
        images: paths of image files, on which it finds at least one box.
        others: more checkpoints of which the same is asserted, for less time than by a call for each.
    """
    checkpoints, images, expected = [str(path) for path in (best_pt, *others)], [str(image) for image in images], []
    for checkpoint in checkpoints:
        here = YOLO(checkpoint).predict(images, conf=0.01, device="cpu", save=False, verbose=False)
        expected += [result.boxes.data for result in here]
        assert sum(len(result.boxes) for result in here), "no boxes, so nothing to compare"
    ways = _boxes_alone(checkpoints, images)
    assert len(ways) == 2
    for found in ways:
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(torch.tensor(other).reshape(-1, 6), one, rtol=0, atol=1e-3)


def _boxes_alone(checkpoints, images):
    environment = {
        **os.environ,
        "ULTRALYTICS_SAFE_LOAD": "false",
        "YOLO_OFFLINE": "true",
        "YOLO_AUTOINSTALL": "false",  # a class that is missing must not be asked for on the internet
    }
    command = [sys.executable, "-c", _SCRIPT, json.dumps([checkpoints, images])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr.strip().splitlines()[-1]
    lines = (line for line in done.stdout.splitlines() if line.startswith("BOXES "))
    return [json.loads(line.removeprefix("BOXES ")) for line in lines]
