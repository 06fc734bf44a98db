"""Detectors of a few layers, batches and student-teacher pairs: what tests of distill/ and engine/ start from."""

from copy import deepcopy
from types import SimpleNamespace

import torch
from torch import nn
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.torch_utils import ModelEMA

from ds2d2_yolo.detectors.faster_rcnn import FasterRCNNDetect
from ds2d2_yolo.detectors.registry import DetectorModel
from ds2d2_yolo.detectors.retinanet import RetinaNetDetect
from ds2d2_yolo.distill.levels import detect_head, tapped
from ds2d2_yolo.distill.model import DS2D2Model
from ds2d2_yolo.engine.settings import TERMS, defaults

NC = 3
PAPER = dict.fromkeys(TERMS, 1.0) | {"balance": "fixed"}  # weights as they are


def tiny(strides=(8, 16), width=8, channels=3, end2end=False, reg_max=16, seed=0, last=None, nc=NC):
    """A detector of a few convolutions with maps of `strides`, 8, 16, 24 ... channels (times width / 8), or `last`."""
    torch.manual_seed(seed)
    depth = max(strides).bit_length() - 1
    backbone = [[-1, 1, "Conv", [width * max(1, i - 1), 3, 2]] for i in range(depth)]
    backbone[-1][3][0] = last or backbone[-1][3][0]
    sources = [s.bit_length() - 2 for s in strides]
    layout = {
        "nc": nc,
        "channels": channels,
        "end2end": end2end,
        "reg_max": reg_max,
        "backbone": backbone,
        "head": [[sources, 1, "Detect", ["nc"]]],
    }
    return spread(DetectionModel(layout, ch=channels, nc=nc, verbose=False))


def family(name, nc=NC, seed=0):
    """The model of an Ultralytics YAML file, such as yolo11n."""
    torch.manual_seed(seed)
    return spread(DetectionModel(f"{name}.yaml", nc=nc, verbose=False))


def tiny_retinanet(width=16, channels=3, strides=(8, 16, 32, 64, 128), seed=0, **options):
    """A RetinaNet with the smallest ResNet and an FPN of `width` channels; strides from 4 or 8 on."""
    stages = [2, 3, 4] if strides[0] == 8 else [1, 2, 3, 4]
    return _with_fpn(RetinaNetDetect, stages, "p6p7", width, channels, seed, {"strides": list(strides), **options})


def tiny_faster_rcnn(width=16, channels=3, seed=0, **options):
    """A Faster R-CNN with the smallest ResNet, an FPN of `width` channels, few hidden units and few regions."""
    options = {"fc": 32, "roi_samples": 32, "proposals_before_nms": 200, "proposals": 100, **options}
    return _with_fpn(FasterRCNNDetect, [1, 2, 3, 4], "pool", width, channels, seed, options)


def _with_fpn(head, stages, extra, width, channels, seed, options):
    torch.manual_seed(seed)
    layout = {
        "nc": NC,
        "backbone": [[-1, 1, "Normalize", ["ch"]], [-1, 1, "ResNet", ["resnet10", "ch", stages]]],
        "head": [
            [-1, 1, "FPN", [[32 * 2**s for s in stages], width, extra]],
            [-1, 1, head.__name__, ["nc", width, options]],
        ],
    }
    return spread(DetectorModel(layout, ch=channels, nc=NC, verbose=False))


def spread(model):
    """Gives a fresh model BatchNorms that do something, scores that differ, and the arguments its loss needs."""
    head = model.model[-1]
    with torch.no_grad():
        if isinstance(head, RetinaNetDetect):  # fresh ones of few channels let next to nothing through
            for module in head.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.1, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.8, 1.2)
                module.bias.uniform_(-0.1, 0.1)
        for layer, factor in _last_of_classes(head):
            layer.weight.mul_(factor)
            layer.bias.uniform_(-2.5, -0.5)
    model.args = get_cfg()
    model.names = {i: f"class{i}" for i in range(head.nc)}
    return model


def _last_of_classes(head):
    """The layers that give a head's class logits, and what they are multiplied with to tell images apart."""
    if isinstance(head, RetinaNetDetect):
        return [(head.head.classification_head.cls_logits, 0.5)]
    if isinstance(head, FasterRCNNDetect):
        return [(head.roi_heads.box_predictor.cls_score, 5)]
    branches = filter(None, (head.cv3, getattr(head, "one2one_cv3", None)))
    return [(layers[-1], 10) for branch in branches for layers in branch]


def make_batch(counts=(2, 1), size=64, channels=3, seed=0):
    """An Ultralytics batch: one image an entry of `counts`, that many boxes in it; `size` is a side or (h, w)."""
    generator = torch.Generator().manual_seed(seed)
    height, width = (size, size) if isinstance(size, int) else size
    number = sum(counts)
    extent = 0.05 + 0.25 * torch.rand(number, 2, generator=generator)
    centre = 0.2 + 0.6 * torch.rand(number, 2, generator=generator)
    return {
        "img": torch.rand(len(counts), channels, height, width, generator=generator),
        "bboxes": torch.cat((centre, extent), 1),
        "cls": torch.randint(0, NC, (number, 1), generator=generator).float(),
        "batch_idx": torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).float(),
    }


def settings(**changes):
    """DS2D2's defaults with changes; the warm-up is off unless it is asked for."""
    unknown = set(changes) - set(defaults())
    assert not unknown, unknown
    return SimpleNamespace(**{**defaults(), "distill_warmup": 0.0, **changes})


def distilled(student, teacher, **changes):
    """The student-teacher model in training mode; the teacher's own head, a bit off, is the second amplifier."""
    own = settings(**changes)
    teacher = deepcopy(teacher)  # fresh Ultralytics models share one activation module, those from files do not
    high = None
    if own.im_high > 0:
        high = deepcopy(detect_head(teacher))
        with torch.no_grad():
            for parameter in high.parameters():
                parameter.mul_(1.01)
    return DS2D2Model(student, teacher, high, own).train()


def only(name, weight=1.0):
    """Settings that switch all terms off but one."""
    return {**dict.fromkeys(("ex_low", "ex_high", "im_full", "im_high"), 0.0), name: weight}


def loss_at_neck(model, batch):
    """Loss vector, its items, and the maps that the student's head received, part of the same graph."""
    with tapped(detect_head(model.student_model)) as maps:
        loss, items = model(batch)
    return loss, items, maps


def norm_of_gradient(loss, maps):
    """Euclidean norm of the gradient of a scalar at several tensors together."""
    grads = torch.autograd.grad(loss, maps, retain_graph=True, allow_unused=True)
    return torch.sqrt(sum(g.double().square().sum() for g in grads if g is not None)).item()


def frozen_state(model):
    """Copies of all that must never change: teacher and amplifiers."""
    parts = {"teacher": model._frozen.teacher}
    parts |= {k: a.head for k in ("full", "high") if (a := getattr(model._frozen, k)) is not None}
    return {f"{part}.{k}": v.clone() for part, m in parts.items() for k, v in m.state_dict().items()}


def train_steps(model, steps=3, **batch):
    """Optimizer steps as the trainer makes them: train mode, EMA, new batches."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    ema = ModelEMA(model)
    for step in range(steps):
        model.train()
        loss, items = model(make_batch(seed=step, **batch))
        loss.sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(model)
    return ema, items


def assert_same(before, after):
    """Two state dicts hold the same, bit for bit."""
    assert before.keys() == after.keys()
    assert [k for k, v in before.items() if not torch.equal(v, after[k])] == []


def values(items):
    """Loss items as numbers."""
    return {k: v.item() for k, v in items.items()}
