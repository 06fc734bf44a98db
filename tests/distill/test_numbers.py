"""Extremes of a step: losses in half precision, a teacher that sees nothing, crowds, one image."""

from functools import cache

import pytest
import torch
from ultralytics.nn.modules.head import Detect

from ds2d2_yolo.detectors.retinanet import RetinaNetDetect
from ds2d2_yolo.engine.settings import TERMS
from tests.helpers.distilling import distilled, make_batch, tiny, tiny_faster_rcnn, tiny_retinanet, values
from tests.helpers.quick import copied

# How far a loss may be from float32's, relative: bfloat16 keeps 8 bits of a number, float16 11. The implicit terms are
# the furthest: small differences of two predictions
BOUNDS = {torch.bfloat16: 0.1, torch.float16: 0.01}
PAIRS = {
    "yolo": lambda: (tiny(), tiny(width=16, seed=1)),
    "end to end": lambda: (tiny(end2end=True, reg_max=1), tiny(end2end=True, reg_max=1, width=16, seed=1)),
    "retinanet": lambda: (tiny_retinanet(16), tiny_retinanet(24, seed=1)),
    "faster-rcnn": lambda: (tiny_faster_rcnn(16), tiny_faster_rcnn(24, seed=1)),
}
every_pair = pytest.mark.parametrize("pair", PAIRS)


@cache
def prepared(pair):
    torch.manual_seed(0)
    return distilled(*PAIRS[pair]())


def step(model, batch, dtype=None):
    """Losses of two steps, of which the first measures the terms, and the model with its gradients."""
    model, found = copied(model), {}
    for number in range(2):
        torch.manual_seed(1)  # of the regions that are sampled
        model.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss, items = model(batch)
        loss.sum().backward()
        found |= {(number, name): value for name, value in values(items).items()}
    assert all(value == value and abs(value) < 1e6 for value in found.values()), found
    if dtype != torch.float16:  # there a loss scale looks after the gradients
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    return found, model


@pytest.mark.parametrize("pair", ["yolo", "end to end", "retinanet"])
def test_half_precision_agrees(pair):
    """Faster R-CNN is left out: other proposals are sampled as soon as scores differ in their last bit."""
    batch, model = make_batch((3, 2), size=64), prepared(pair)
    exact = step(model, batch)[0]
    for dtype, bound in BOUNDS.items():
        rough = step(model, batch, dtype)[0]
        for name, value in exact.items():
            assert rough[name] == pytest.approx(value, rel=bound, abs=1e-4), (name, dtype)


@every_pair
def test_crowds(pair):
    """10,000 boxes in a step, half of them in one place, beside an image without any."""
    # Each box is a proposal of a Faster R-CNN's, which is compared with all boxes of its image
    counts = (2_500, 2_500, 2_500, 2_500, 0) if pair == "faster-rcnn" else (5_000, 5_000, 0)
    batch = make_batch(counts, size=64)
    batch["bboxes"][::2] = torch.tensor([0.5, 0.5, 0.01, 0.01])
    found, _ = step(prepared(pair), batch)
    assert all(found[1, name] > 0 for name in TERMS)


@every_pair
@pytest.mark.parametrize("boxes", [0, 3])
def test_one_image(pair, boxes):
    found, _ = step(prepared(pair), make_batch((boxes,), size=64))
    assert all(found[1, name] >= 0 for name in TERMS)


@pytest.mark.parametrize("pair", ["yolo", "end to end", "retinanet"])
def test_a_teacher_that_predicts_nothing(pair):
    """Its class scores are 0 everywhere: nothing to imitate, and no division by it."""
    torch.manual_seed(0)
    student, teacher = PAIRS[pair]()
    for layer in class_layers(teacher.model[-1]):
        layer.bias.data.fill_(-1e4)
    found, model = step(distilled(student, teacher), make_batch((2, 1), size=64))
    assert found[1, "im_full"] == pytest.approx(0, abs=1e-6)
    assert found[1, "ex_low"] > 0
    assert any(p.grad.abs().sum() > 0 for p in model.projector.parameters())


def class_layers(head):
    if isinstance(head, RetinaNetDetect):
        return [head.head.classification_head.cls_logits]
    assert isinstance(head, Detect)
    branches = filter(None, (head.cv3, getattr(head, "one2one_cv3", None)))
    return [layers[-1] for branch in branches for layers in branch]


def test_float16_overflow_is_told_by_its_gradient():
    """Weights beyond float16's range make infinities, which the trainer leaves out; the terms' scales stay finite."""
    torch.manual_seed(0)
    model = distilled(*PAIRS["yolo"]())
    with torch.no_grad():
        model.student_model.model[0].conv.weight.mul_(1e6)
    with torch.autocast("cpu", torch.float16):
        loss, _ = model(make_batch())
    loss.sum().backward()
    norms = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    assert not norms.isfinite()
    assert all(abs(scale) < float("inf") for scale in model.balance.scales.values())
