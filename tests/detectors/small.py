"""Narrow RetinaNet and Faster R-CNN models, and batches for them."""

import io
from copy import deepcopy

import torch

from ds2d2_yolo.detectors.registry import DetectorModel

KINDS = ("retinanet", "faster-rcnn")
CHANNELS = 16
# Mean and standard deviation that `lively` gives to what these layers put out
LAST = {
    "classification_head.cls_logits": (-2.0, 1.0),
    "regression_head.bbox_reg": (0.0, 0.3),
    "rpn.head.cls_logits": (0.0, 1.0),
    "rpn.head.bbox_pred": (0.0, 0.3),
    "box_predictor.cls_score": (0.0, 1.0),
    "box_predictor.bbox_pred": (0.0, 1.0),
}


def layout(kind, nc=3, backbone="resnet10", **options):
    """The parsed YAML of a narrow detector."""
    if kind == "retinanet":
        maps, stages, extra, head = [128, 256, 512], [2, 3, 4], "p6p7", "RetinaNetDetect"
    else:
        maps, stages, extra, head = [64, 128, 256, 512], [1, 2, 3, 4], "pool", "FasterRCNNDetect"
        options = {"fc": 32} | options
    if backbone == "resnet50":
        maps = [4 * channels for channels in maps]
    return {
        "nc": nc,
        "backbone": [[-1, 1, "Normalize", ["ch"]], [-1, 1, "ResNet", [backbone, "ch", stages]]],
        "head": [[-1, 1, "FPN", [maps, CHANNELS, extra]], [-1, 1, head, ["nc", CHANNELS, options]]],
    }


def detector(kind, nc=3, ch=3, seed=0, **options):
    """A narrow detector that finds something in any image."""
    torch.manual_seed(seed)
    return lively(DetectorModel(layout(kind, nc, **options), ch=ch, verbose=False))


@torch.no_grad()
def lively(model, size=64):
    """Scale the last layers, so that scores and boxes differ, and scores pass the threshold.

    What comes out of a fresh head is almost the same everywhere.
    """
    channels = model.model[0].mean.shape[1]
    layers = [(m, goal) for name, m in model.named_modules() for end, goal in LAST.items() if name.endswith(end)]
    for _ in range(2):  # regions depend on the proposals' layers
        outputs = {m: [] for m, _ in layers}
        hooks = [m.register_forward_hook(lambda _, __, out, kept=kept: kept.append(out)) for m, kept in outputs.items()]
        model.eval()(torch.rand(2, channels, size, size))
        for (m, (mean, std)), hook in zip(layers, hooks, strict=True):
            hook.remove()
            values = torch.cat([out.transpose(0, 1).flatten(1) for out in outputs[m]], 1)
            factor = std / (values - values.mean(1, keepdim=True)).std()
            m.bias.copy_(mean + factor * (m.bias - values.mean(1)))
            m.weight.mul_(factor)
    return model.train()


def batch_of(counts, size=(64, 64), nc=3, ch=3, seed=0):
    """An Ultralytics batch with ``counts`` boxes in its images."""
    draw = torch.Generator().manual_seed(seed)
    n = sum(counts)
    boxes = torch.rand(n, 4, generator=draw)
    return {
        "img": torch.rand(len(counts), ch, *size, generator=draw),
        "bboxes": boxes * torch.tensor([0.6, 0.6, 0.25, 0.25]) + torch.tensor([0.2, 0.2, 0.1, 0.1]),
        "cls": torch.randint(0, nc, (n, 1), generator=draw).float(),
        "batch_idx": torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).float(),
    }


def still(model):
    """The model in training mode with BatchNorms that use, and keep, their running statistics."""
    model = deepcopy(model).train()
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.eval()
    return model


def found(model, image):
    """The detections, ``(B, max_det, 6)``."""
    with torch.no_grad():
        return model.eval()(image)[0]


def reloaded(model):
    """The model as it comes back from a file."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)
