"""Small detectors that were never trained, with scores and boxes as spread as trained ones have them."""

from copy import deepcopy

import torch
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import YAML
from ultralytics.utils.checks import check_yaml

BACKBONE = [[-1, 1, "Conv", [width, 3, 2]] for width in (8, 12, 16, 24, 32)]
FEW_LAYERS = {"nc": 80, "backbone": BACKBONE, "head": [[[2, 3, 4], 1, "Detect", ["nc"]]]}
ATTENTIVE = {"backbone": [*BACKBONE, [-1, 1, "C2PSA", [32]]], "head": [[[2, 3, 5], 1, "Detect", ["nc"]]]}
KINDS = {  # YOLO26's kind of head, and the attention that YOLO11 and YOLO26 end their backbones with
    None: FEW_LAYERS,
    "one-to-one": {**FEW_LAYERS, "end2end": True, "reg_max": 1},
    "attention": {**FEW_LAYERS, **ATTENTIVE},
}


def narrow_detector(family=None, nc=3, imgsz=64, channels=3, seed=0):
    """A DetectionModel of half the width of the family's smallest one, or one of KINDS: a few layers, as quick as can
    be."""
    torch.manual_seed(seed)
    layout = deepcopy(KINDS.get(family))
    if not layout:
        layout = YAML.load(check_yaml(f"{family}.yaml"))
        layout.update(scales={"n": [0.33, 0.125, 1024]}, scale="n")
    layout["channels"] = channels
    model = DetectionModel(layout, ch=channels, nc=nc, verbose=False)
    head = model.model[-1]
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.uniform_(-0.1, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        for branch in filter(None, (head.cv3, getattr(head, "one2one_cv3", None))):
            for layers in branch:
                layers[-1].weight.mul_(10)
                layers[-1].bias.uniform_(-1.5, -0.5)
    model.names = {i: f"class{i}" for i in range(nc)}
    model.args = {"imgsz": imgsz, "task": "detect"}
    return model.eval()


def save_checkpoint(path, model, key="model", **train_args):
    """Saves as Ultralytics saves: in half precision, as `model` (a released one) or `ema` (in training)."""
    train_args = {"task": "detect", "imgsz": 64, **train_args}
    states = {"model": None, "ema": None, key: deepcopy(model).half()}
    torch.save({**states, "epoch": -1 if key == "model" else 3, "train_args": train_args}, path)
    return path
