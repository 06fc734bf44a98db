"""Reports made up by hand, for what shows them."""

import base64

import cv2
import numpy as np

from ds2d2_yolo.report.examples import Box, Example, Illustration, Panel
from ds2d2_yolo.report.page import Listing, Model, Recovery, Report, Share, Verdict

HOSTILE = '</script><script>hacked=1</script><img src=x onerror="hacked=1">\'"&]]>'


def rating(ap, names=("ship", "car"), **more):
    """A rating as plain values, of classes that differ by 2 points around `ap`."""
    curve = [max(0.0, ap + 40 - i) for i in range(101)]
    classes = [
        {"index": i, "name": name, "objects": 10 * i, "ap": None if ap is None else ap - 1 + 2 * i, "ap50": ap + 5,
         "curve": curve}
        for i, name in enumerate(names)
    ]  # fmt: skip
    values = {"ap": ap, "ap50": ap + 5, "ap75": ap - 5, "ap_small": None, "f1": ap + 20, "confidence": 0.25}
    return {**values, "ar": {"100": ap + 1, "300": ap + 2}, "curve": curve, "classes": classes, **more}


def cost(ms, parameters=2_000_000):
    spread = {"median": ms, "low": 0.9 * ms, "high": 1.1 * ms}
    stages = dict.fromkeys(("preprocess", "inference", "postprocess", "total"), spread)
    entries = [
        {"runtime": r, "device": "a CPU", "batch": 1, "rounds": 9, **stages} for r in ("PyTorch", "ONNX Runtime")
    ]
    return {"parameters": parameters, "gflops": 5.5, "file_mb": 4.2, "peak_mb": None, "latency": entries}


def example(name="a.png"):
    """A grey picture with a right, a wrong and a missed box of the student."""
    data = cv2.imencode(".jpg", np.full((120, 160, 3), 128, np.uint8))[1].tobytes()
    boxes = {
        k: (Box((20 + 50 * i, 30, 50 + 50 * i, 80), f"ship {k}"),) for i, k in enumerate(("right", "wrong", "missed"))
    }
    panels = [
        Panel(role, role, dict.fromkeys(boxes, 1), boxes if role == "student" else dict.fromkeys(boxes, ()))
        for role in ("teacher", "baseline", "student")
    ]
    picture = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
    return Example(name, (1200, 1600), (40, 40, 200, 160), 3, picture, tuple(panels))


def full_report():
    """A teacher, a baseline and a student with all that a report can hold."""
    return Report(
        "my.yaml",
        (
            Model("big", "teacher", rating(60), cost(30, 9_000_000)),
            Model("plain", "baseline", rating(40), cost(10)),
            Model("small", "student", rating(45), cost(11)),
        ),
        settings={"split": "val"},
        recovered=(Recovery("small", (Share("AP", 60, 40, 45, 0.25), Share("boat", 1, 1, 1, None, "no lead"))),),
        verdicts=(Verdict("small", "plain", "AP", 5.0, -0.5, 9.0, "within noise"),),
        intervals={"small": {"0": {"low": -1.0, "high": 9.0}, "1": {"low": 2.0, "high": 8.0}}},
        listings=(Listing("Seeds", ("setting", "AP"), (("small", "45.0 ± 0.3"),)),),
        illustration=Illustration((example(),), 3, 1, 2),
        notes=("A note.",),
    )
