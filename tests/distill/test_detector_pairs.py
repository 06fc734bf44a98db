"""RetinaNet, Faster R-CNN and YOLO as students and teachers of each other."""

from collections import Counter
from copy import deepcopy
from functools import cache

import pytest
import torch
from torch import nn
from torchvision.models.detection.roi_heads import RoIHeads

from ds2d2_yolo.detectors.registry import DetectorModel
from ds2d2_yolo.detectors.retinanet import RetinaNetDetect
from ds2d2_yolo.engine.settings import TERMS
from ds2d2_yolo.errors import UserError
from tests.helpers.distilling import (
    PAPER,
    assert_same,
    distilled,
    frozen_state,
    loss_at_neck,
    make_batch,
    norm_of_gradient,
    only,
    tiny_faster_rcnn,
    tiny_retinanet,
    train_steps,
    values,
)
from tests.helpers.pairs import built, pair
from tests.helpers.quick import copied

# student, teacher: the strides they share
PAIRS = {
    ("retinanet", "retinanet"): [8, 16, 32, 64, 128],
    ("faster-rcnn", "faster-rcnn"): [4, 8, 16, 32, 64],
    ("yolo", "retinanet"): [8, 16, 32],
    ("retinanet", "yolo"): [8, 16, 32],
    ("faster-rcnn", "retinanet"): [8, 16, 32, 64],
    ("faster-rcnn", "yolo"): [8, 16, 32],
}
NO_HEAD = {"im_full": 0.0, "im_high": 0.0}
every_pair = pytest.mark.parametrize("student, teacher", PAIRS, ids=lambda kind: kind)
OF_HEADS = ("im_full", "im_high")
# Features are the student's, whoever its teacher is, and heads are asked in every pair
EACH_STUDENT = [("retinanet", "yolo"), ("faster-rcnn", "faster-rcnn"), ("yolo", "retinanet")]


def with_terms(explicit, implicit):
    """Every pair with the terms that its teacher's head makes, and every student with those of its features."""
    cases = [(*one, name) for name in explicit for one in EACH_STUDENT]
    cases += [(*one, name) for name in implicit for one in PAIRS]
    return pytest.mark.parametrize("student, teacher, name", cases, ids="-".join)


prepared = cache(pair)


def ready(student, teacher):
    """A model of one's own, its frozen part one that other tests have asked before."""
    torch.manual_seed(0)  # of the regions that are sampled
    return copied(prepared(student, teacher))


def assert_finite(model, loss, items):
    loss.sum().backward()
    assert all(v.isfinite() for v in items.values()), values(items)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


# ---- who can teach whom


@every_pair
def test_four_terms_train_student_and_adapters(student, teacher):
    model = pair(student, teacher)
    assert [level.stride for level in model.levels] == PAIRS[student, teacher]
    names, before = set(model.student_model.state_dict()), frozen_state(model)
    adapters = {f"projector.{i}.weight": a.weight.clone() for i, a in enumerate(model.projector)}
    assert set(model.state_dict()) == {f"student_model.{name}" for name in names} | set(adapters)
    loss, items, maps = loss_at_neck(model, make_batch(size=96))
    assert all(0 < items[name] < 1e4 for name in TERMS), values(items)
    shared = [maps[level.student] for level in model.levels]
    assert all(g.abs().max() > 0 for g in torch.autograd.grad(loss[-1], shared, retain_graph=True))
    loss.sum().backward()
    assert all(a.weight.grad.abs().max() > 0 for a in model.projector)
    ema, items = train_steps(model, steps=1, size=96)
    assert all(p.isfinite().all() for p in [*items.values(), *model.parameters()])
    state = model.state_dict()
    assert not any(torch.equal(state[name], weight) for name, weight in adapters.items())
    assert_same(before, frozen_state(model))
    assert set(ema.ema.state_dict()) == set(state)
    parts = [model._frozen.teacher, model._frozen.full.head, model._frozen.high.head]
    assert not any(m.training for part in parts for m in part.modules())
    assert all(p.grad is None and not p.requires_grad for part in parts for p in part.parameters())
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for m in parts for p in m.parameters()}


@with_terms(("ex_low", "ex_high"), OF_HEADS)
def test_each_term_alone_moves_the_students_neck(student, teacher, name):
    model = pair(student, teacher, **only(name))
    loss, items, maps = loss_at_neck(model, make_batch(size=96))
    assert items[name] > 0
    assert all(items[other] == 0 for other in TERMS if other != name)
    for reached in (maps, [next(model.student_model.parameters())]):
        assert 0 < norm_of_gradient(loss[-1], reached) < float("inf")


@pytest.mark.parametrize("student, strides", [("yolo", [8, 16, 32]), ("retinanet", [8, 16, 32, 64])])
def test_a_faster_rcnn_teaches_others_its_features_alone(student, strides):
    for changes in ({}, only("im_full"), only("im_high")):
        with pytest.raises(UserError, match="makes none: distil its features alone .im_full=0 im_high=0."):
            pair(student, "faster-rcnn", **changes)
    model = pair(student, "faster-rcnn", **NO_HEAD)
    assert [level.stride for level in model.levels] == strides
    before = frozen_state(model)
    _, items = train_steps(model, size=96)
    assert items["ex_low"] > 0 and items["ex_high"] > 0
    assert items["im_full"] == items["im_high"] == 0
    assert_same(before, frozen_state(model))


# ---- once a step


@pytest.fixture
def calls(monkeypatch):
    """How often anchors were assigned and regions were sampled."""
    counted = Counter()

    def count(owner, name):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, **k: counted.update([name]) or original(*a, **k))

    count(RetinaNetDetect, "match")
    count(RoIHeads, "select_training_samples")
    return counted


@pytest.mark.parametrize(
    "student, teacher, expected",
    [
        ("retinanet", "retinanet", {"match": 1}),
        ("yolo", "retinanet", {"match": 1}),
        ("retinanet", "yolo", {"match": 1}),
        ("faster-rcnn", "retinanet", {"match": 1, "select_training_samples": 1}),
        ("faster-rcnn", "faster-rcnn", {"select_training_samples": 1}),
    ],
)
def test_anchors_are_assigned_and_regions_sampled_once(calls, student, teacher, expected):
    model = ready(student, teacher)
    model(make_batch(size=96))
    assert calls == expected
    model(make_batch(size=64, seed=1))  # another batch, another assignment
    assert calls == dict.fromkeys(expected, 2)


def test_anchors_of_other_levels_are_assigned_once_more(calls):
    student = tiny_retinanet(16, strides=(4, 8, 16, 32, 64, 128))
    distilled(student, built("retinanet", 32, 1), **PAPER)(make_batch(size=64))
    assert calls == {"match": 2}


def test_the_regions_are_those_of_the_detection_loss(monkeypatch):
    model = ready("faster-rcnn", "faster-rcnn")
    asked = []
    head = type(model.student_model.model[-1])
    predict = head.predict
    monkeypatch.setattr(head, "predict", lambda self, maps, rows: asked.append(rows) or predict(self, maps, rows))
    model(make_batch(size=96))
    assert len(asked) == 5  # the student's own loss, and two amplifiers on two sides
    assert all(rows is asked[0] for rows in asked)


# ---- inputs of every kind


@pytest.mark.parametrize("counts, size", [((0, 0), 64), ((1,), 64), ((300, 300), 64), ((4, 0), (96, 160))], ids=str)
@every_pair
def test_images_of_every_kind(student, teacher, counts, size):
    model = ready(student, teacher)
    loss, items = model(make_batch(counts, size))
    assert all(items[name] > 0 for name in TERMS), values(items)
    assert all(items[name] < 100 for name in ("im_full", "im_high")), values(items)
    assert_finite(model, loss, items)


def test_images_smaller_than_the_coarsest_stride():
    for name in ("retinanet", "faster-rcnn"):
        model = ready(name, name)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()  # nothing to take statistics of
        assert_finite(model, *model(make_batch((1,), 32)))


# Slow on a CPU; that of a Faster R-CNN and the others' heads is each with another partner
@pytest.mark.parametrize("student, teacher", [("retinanet", "retinanet"), *EACH_STUDENT], ids=lambda kind: kind)
def test_bfloat16_autocast(student, teacher):
    model = ready(student, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        loss, items = model(make_batch(size=64))
    assert loss.dtype == torch.float32
    assert all(items[name].dtype == torch.float32 and items[name] > 0 for name in TERMS)
    assert_finite(model, loss, items)


@pytest.mark.parametrize("make, channels", [(tiny_retinanet, 1), (tiny_faster_rcnn, 4)])
def test_images_of_other_channels(make, channels):
    model = distilled(make(16, channels=channels), make(32, channels=channels, seed=1), **PAPER)
    loss, items = model(make_batch(channels=channels))
    assert all(items[name] > 0 for name in TERMS)
    assert_finite(model, loss, items)


@pytest.mark.parametrize("kind", ["retinanet", "faster-rcnn"])
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(kind):
    model = distilled(deepcopy(built(kind, 16, 0)), built(kind, 16, 0), **PAPER)
    other = ready(kind, kind)(make_batch(size=96))[1]
    model.student_model.freeze_statistics()  # the teacher's, not the batch's
    loss, items, maps = loss_at_neck(model, make_batch(size=96))
    assert all(abs(items[name]) < 1e-5 * other[name] for name in TERMS), values(items)
    gradients = torch.autograd.grad(loss[-1], maps, allow_unused=True)
    assert all(g.isfinite().all() for g in gradients if g is not None)


@pytest.mark.parametrize("kind", ["retinanet", "faster-rcnn"])
def test_validation_has_detection_items_and_zeros(kind):
    model = ready(kind, kind).eval()
    model._frozen = None  # as in the EMA, which is what is validated
    batch = make_batch()
    loss, items = model.loss(batch, model(batch["img"]))
    assert len(loss) + len(TERMS) == len(items)
    assert all((value == 0) == (name in TERMS) for name, value in items.items()), values(items)


# ---- what is handed to the optimizer


@every_pair
def test_both_parts_of_the_loss_are_scaled_alike(student, teacher):
    model = ready(student, teacher)
    for nominal in (64, 16):  # Ultralytics' own first
        loss, items = model(make_batch((2, 1, 0)))
        ours = isinstance(model.student_model, DetectorModel)
        scale = 3 / nominal if ours else 3
        detection = sum(v for name, v in items.items() if name not in TERMS)
        torch.testing.assert_close(loss[:-1].sum(), detection * scale)
        torch.testing.assert_close(loss[-1], sum(items[name] for name in TERMS) * scale)
        model.student_model.args.nbs = 16  # the second time


@with_terms(("ex_high",), ("im_full",))
def test_a_balanced_term_pulls_as_hard_as_its_weight_says(student, teacher, name):
    model = pair(student, teacher, **only(name, 0.25), balance="gradient")
    loss, _, maps = loss_at_neck(model, make_batch(size=96))
    assert norm_of_gradient(loss[-1], maps) == pytest.approx(0.25 * norm_of_gradient(loss[:-1].sum(), maps), rel=1e-3)
