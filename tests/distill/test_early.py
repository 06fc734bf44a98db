"""Gradients that are taken early are those of the plain weighted sum."""

import weakref
from functools import partial

import pytest
import torch
from torch import nn

from ds2d2_yolo.distill import early
from ds2d2_yolo.distill.amplifiers import Step
from ds2d2_yolo.distill.early import EarlyGradients
from ds2d2_yolo.distill.levels import detect_head, tapped
from ds2d2_yolo.engine.settings import TERMS
from ds2d2_yolo.method.implicit import match_statistics
from tests.helpers.distilling import distilled, make_batch, only, tiny, tiny_faster_rcnn, tiny_retinanet, values
from tests.helpers.sharing import EVERYTHING

WEIGHTS = {"ex_low": 0.7, "ex_high": 1.3, "im_full": 2.0, "im_high": 0.6}


def plain_terms(model, student, teacher, step, names):
    """The explicit terms and those of the names, with their whole graph, from the student's maps on."""
    s = model.settings
    adapted = [adapter(m) for adapter, m in zip(model.projector, student, strict=True)]
    if s.align:
        adapted = [match_statistics(ours, theirs) for ours, theirs in zip(adapted, teacher, strict=True)]
    asked = student if s.published else adapted
    terms = model._explicit(adapted, teacher, step.batch)
    if "im_full" in names:
        terms["im_full"] = model._frozen.full.loss(asked, teacher, step)
    if "im_high" in names:
        terms |= model._high(asked, teacher, step)
    return terms


def plain_gradients(model, batch, factors):
    """Gradient of the weighted sum of the terms by parameter, in one backward pass, and the terms."""
    with torch.no_grad():
        taught = model._frozen.teacher(batch["img"])
    with tapped(detect_head(model.student_model)) as neck:
        preds = model.student_model(batch["img"])
    model.student_model.loss(batch, preds)  # Faster R-CNN's draws regions
    taught, student = [taught[level.teacher] for level in model.levels], [neck[level.student] for level in model.levels]
    terms = plain_terms(model, student, taught, Step(batch, preds), factors)
    total = sum(factors[name] * terms[name] for name in factors) * len(batch["img"])
    return gradients(model, total), {name: term.item() for name, term in terms.items()}


def gradients(model, total):
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(named.items(), found, strict=True)}


def assert_equal(found, expected, **tolerance):
    whole = max(g.abs().max() for g in expected.values())
    for name in expected:
        # What stands before a normalisation has a gradient of rounding errors alone
        scale = expected[name].abs().max().clamp(min=1e-2 * whole)
        torch.testing.assert_close(found[name] / scale, expected[name] / scale, **tolerance, msg=name)


def sure(model):
    """Statistics of batch normalisation stay: two passes of one model are the same."""
    for module in model.student_model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


PAIRS = {
    "adapters": ({}, {"width": 16}),
    "no adapters": ({}, {}),
    "raw maps": ({"align": False}, {"width": 16}),
    "wavelet": ({"wavelet": "db2", "normalize": "teacher"}, {"width": 16}),
}


# ---- the model's loss


@pytest.mark.parametrize("own, teacher", PAIRS.values(), ids=PAIRS)
def test_the_loss_has_the_gradient_of_the_weighted_sum(own, teacher):
    model = sure(distilled(tiny(), tiny(seed=1, **teacher), balance="fixed", **WEIGHTS, **own))
    batch = make_batch((3, 2))
    expected, terms = plain_gradients(model, batch, WEIGHTS)
    for model.measure_next in (True, False):  # measuring, and weighed
        loss, items = model(batch)
        assert_equal(gradients(model, loss[-1]), expected, rtol=1e-3, atol=1e-4)
        assert {n: v for n, v in values(items).items() if n in TERMS} == pytest.approx(terms, rel=1e-4)
        assert loss[-1].item() == pytest.approx(sum(WEIGHTS[n] * terms[n] for n in TERMS) * 2, rel=1e-4)
    adapters = [g for name, g in expected.items() if name.startswith("projector")]
    assert all(g.abs().max() > 0 for g in adapters) and bool(adapters) == bool(teacher)


@pytest.mark.parametrize("together", [True, False])
def test_in_float64_it_is_the_same_to_the_last_digits(together):
    model = distilled(tiny(), tiny(width=16, seed=1)).double()
    step, names = Step(make_batch((3, 2))), ["ex_low", "ex_high"]  # heads' predictions are float32
    torch.manual_seed(0)
    sizes = ((8, 8), (16, 4))
    student = [torch.randn(2, c, n, n, dtype=torch.float64, requires_grad=True) for c, n in sizes]
    teacher = [torch.randn(2, 2 * c, n, n, dtype=torch.float64) for c, n in sizes]
    inputs = [*student, *model.projector.parameters()]
    terms = plain_terms(model, student, teacher, step, names)
    expected = torch.autograd.grad(sum(WEIGHTS[name] * terms[name] for name in names), inputs)
    early, groups = model._cut_off(student, teacher), model._groups(teacher, step, names)
    if together:
        total, found = early.together(groups, {name: WEIGHTS[name] for name in names})
    else:
        found = early.separate(groups)
        total = sum(WEIGHTS[name] * found[name] for name in names)
    assert values(found) == pytest.approx(values(terms), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(total, inputs), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", [tiny_retinanet, tiny_faster_rcnn])
@pytest.mark.parametrize("published", [True, False])
def test_heads_that_are_asked_after_the_students(make, published):
    own, make = WEIGHTS, partial(make, **(EVERYTHING if make is tiny_faster_rcnn else {}))
    widths = {} if published else {"width": 32}
    model = sure(distilled(make(), make(seed=1, **widths), balance="fixed", published=published, **own))
    batch = make_batch((3, 2), size=96)
    assert model._needs_predictions()
    scale = model._loss_scale(2) / 2
    expected, _ = plain_gradients(model, batch, {n: f * scale for n, f in own.items()})
    for model.measure_next in (True, False):  # measuring, and weighed
        assert_equal(gradients(model, model(batch)[0][-1]), expected, rtol=1e-3, atol=1e-4)


def test_published_asks_the_raw_maps():
    own = {**only("im_full"), "balance": "fixed", "published": True}
    model = sure(distilled(tiny_retinanet(), tiny_retinanet(seed=1), **own))
    model.measure_next = False
    found = gradients(model, model(make_batch((3, 2), size=96))[0][-1])
    assert max(g.abs().max() for name, g in found.items() if name.startswith("student_model.model.2.fpn")) > 0
    assert all(g.abs().max() == 0 for name, g in found.items() if name.startswith("projector"))


def test_turns():
    model = sure(distilled(tiny(), tiny(width=16, seed=1), balance="fixed", implicit="turns", **WEIGHTS))
    batch = make_batch((3, 2))
    model.measure_next = False
    for model.turn, resting in ((0, "im_high"), (1, "im_full")):
        factors = {n: w * (2 if n.startswith("im_") else 1) for n, w in WEIGHTS.items() if n != resting}
        expected, _ = plain_gradients(model, batch, factors)
        assert_equal(gradients(model, model(batch)[0][-1]), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("measuring", [True, False], ids=["measuring", "weighed"])
def test_below_a_frozen_neck_the_adapters_are_trained_alone(measuring):
    model = sure(distilled(tiny(), tiny(width=16, seed=1), balance="fixed", **WEIGHTS))
    model.student_model.requires_grad_(False)
    model.measure_next = measuring
    batch = make_batch((3, 2))
    expected, _ = plain_gradients(model, batch, WEIGHTS)
    assert list(expected) == ["projector.0.weight", "projector.1.weight"]
    assert_equal(gradients(model, model(batch)[0][-1]), expected, rtol=1e-3, atol=1e-4)
    model.projector.requires_grad_(False)  # and then nothing is
    model.measure_next = measuring
    loss, items = model(batch)
    assert not loss.requires_grad
    assert all(items[name] > 0 for name in TERMS)


def test_measured_weights_are_those_of_the_step_that_measures():
    model = sure(distilled(tiny(), tiny(width=16, seed=1), **WEIGHTS))
    batch = make_batch((3, 2))
    first, _ = model(batch)
    measured = gradients(model, first[-1])
    assert not model.measure_next
    second, _ = model(batch)
    assert_equal(gradients(model, second[-1]), measured, rtol=1e-3, atol=1e-4)
    assert second[-1].item() == pytest.approx(first[-1].item(), rel=1e-4)


def test_the_students_head_comes_after_the_amplifiers(monkeypatch):
    """Their graphs never live together, which is what the peak of a step depends on."""
    order = []
    model = distilled(tiny(), tiny(width=16, seed=1))
    student_head, loss = type(model.student_model.model[-1]), type(model._frozen.full).loss
    forward = student_head.forward
    monkeypatch.setattr(student_head, "forward", lambda *a: order.append("head") or forward(*a))
    monkeypatch.setattr(type(model._frozen.full), "loss", lambda *a: order.append("amplifier") or loss(*a))
    for measuring in (True, False):
        order.clear()
        model.measure_next = measuring
        model(make_batch())
        assert order == ["amplifier", "amplifier", "head"]


# ---- half precision


def test_backward_runs_outside_autocast():
    """Products of float32 maps, such as the wavelet transform's, stay products in float32."""
    generator = torch.Generator().manual_seed(0)
    leaf = torch.randn(1, 1, 32, 32, generator=generator).requires_grad_()
    matrix = torch.randn(32, 32, generator=generator)

    def group(maps):
        with torch.autocast("cpu", enabled=False):
            return {"a": (matrix @ maps.adapted[0]).sum()}

    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = EarlyGradients([leaf], lambda maps: maps).together([group], {"a": 1.0})
    (found,) = torch.autograd.grad(loss, [leaf])
    torch.testing.assert_close(found, matrix.sum(0)[:, None].expand(32, 32)[None, None])


def test_gradients_are_let_go_after_the_backward_pass(monkeypatch):
    """A trainer holds the loss until the next one is there, the peak of its memory in between."""
    alive, own = [], early._Known.forward

    def forward(ctx, value, grads, *inputs):
        alive.extend(weakref.ref(g) for g in grads if g is not None)
        return own(ctx, value, grads, *inputs)

    monkeypatch.setattr(early._Known, "forward", staticmethod(forward))
    leaf = torch.ones(1, 1, 4, 4, requires_grad=True)
    loss, _ = EarlyGradients([leaf], lambda maps: maps).together([lambda m: {"a": m.raw[0].square().sum()}], {"a": 1.0})
    loss.backward(retain_graph=True)
    assert [ref() is None for ref in alive] == [False]
    loss.backward()
    assert [ref() is None for ref in alive] == [True]
    torch.testing.assert_close(leaf.grad, torch.full_like(leaf, 4.0))


# ---- losses of every kind


def test_losses_without_a_factor_or_a_gradient_are_nothing():
    leaf = torch.ones(1, 1, 2, 2, requires_grad=True)
    early = EarlyGradients([leaf], lambda maps: maps)
    groups = [
        lambda maps: {"a": maps.raw[0].sum(), "b": maps.raw[0].sum() * 5},
        lambda maps: {"c": torch.tensor(3.0)},
        lambda maps: {"d": maps.adapted[0].square().sum()},
    ]
    loss, found = early.together(groups, {"a": 2.0, "c": 1.0, "d": 0.5})
    assert values(found) == {"a": 4.0, "c": 3.0, "d": 4.0}
    assert loss.item() == 13.0
    torch.testing.assert_close(torch.autograd.grad(loss, leaf)[0], torch.full_like(leaf, 3.0))


def test_maps_some_of_which_are_frozen():
    trained, frozen = torch.ones(1, 1, 2, 2, requires_grad=True), torch.ones(1, 1, 2, 2)
    early = EarlyGradients([frozen, trained], lambda maps: [2 * m for m in maps])
    loss, _ = early.together([lambda maps: {"a": sum(m.square().sum() for m in (*maps.raw, *maps.adapted))}], {"a": 1})
    torch.testing.assert_close(torch.autograd.grad(loss, trained)[0], torch.full_like(trained, 10.0))
