"""Gradients are clipped so that what distils takes nothing of the labels' step."""

import pytest
import torch

from ds2d2_yolo.distill.levels import detect_head
from ds2d2_yolo.engine.clipping import clipped_apart
from tests.helpers.distilling import distilled, tiny
from tests.helpers.steps import begin, step


def graded(model, **norms):
    """Gives every part of a model gradients of one value and of that norm together."""
    parts = {"head": detect_head(model.student_model), "adapters": model.projector, "amplifier": model.amplifier}
    of = {name: list(part.parameters()) if part is not None else [] for name, part in parts.items()}
    known = {id(p) for some in of.values() for p in some}
    of["body"] = [p for p in model.parameters() if id(p) not in known]
    for name, some in of.items():
        each = norms.get(name, 0.0) / max(sum(p.numel() for p in some), 1) ** 0.5
        for p in some:
            p.grad = torch.full_like(p, each)
    return of


def norm(parameters):
    return torch.stack([p.grad.norm() for p in parameters]).norm().item()


@pytest.fixture
def model():
    """With terms that pull as hard as the labels."""
    made = distilled(tiny(width=8), tiny(width=16), im_high=0.0)
    made.balance.room = lambda: 2.0
    return made


@pytest.mark.parametrize(
    "labels, norms, kept",
    [
        (True, {"head": 30.0, "body": 80.0}, 10 / 50),  # the labels' part of the body: 40
        (False, {"head": 30.0, "body": 40.0}, 10 / 50),
        (True, {"head": 6.0, "body": 16.0}, 1.0),  # the labels' norm is 10: as it is
        (True, {"head": 1000.0}, 0.01),
        (True, {"body": 80.0}, 10 / 40),
    ],
)
def test_the_norm_that_counts(model, labels, norms, kept):
    parts = graded(model, **norms)
    before = {name: norm(some) for name, some in parts.items() if some}
    with clipped_apart(model, labels):
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=10.0)
    for name, was in before.items():
        assert norm(parts[name]) == pytest.approx(kept * was, rel=1e-4), name
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)  # as ever afterwards
    assert norm(model.parameters()) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("labels", [True, False])
def test_adapters_learn_from_the_terms_alone(model, labels):
    parts = graded(model, head=3.0, body=8.0, adapters=1e4)
    with clipped_apart(model, labels):
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=10.0)
    assert norm(parts["adapters"]) == pytest.approx(10, rel=1e-3)
    assert norm(parts["head"]) == pytest.approx(3.0 if labels else 0.003, rel=1e-2)


def test_gradients_that_are_missing_or_no_numbers(model):
    parts = graded(model, head=30.0, body=80.0)
    parts["head"][0].grad = None
    parts["body"][0].grad.fill_(float("inf"))
    with clipped_apart(model, True):
        found = torch.nn.utils.clip_grad_norm_(iter(model.parameters()), 10.0, foreach=False)
    assert not found.isfinite() and parts["head"][0].grad is None


@pytest.mark.parametrize("clip", ["labels", "all"])
def test_the_labels_keep_their_step_where_gradients_are_clipped(make, clip):
    """The head learns from labels alone: how far it moves beside the terms, and how far it would without them."""
    moved = {}
    for weight in (0.0, 2.0):
        own = {"optimizer": "SGD", "lr0": 1e-3, "nesterov": False, "momentum": 0, "weight_decay": 0, "warmup_epochs": 0}
        terms = {"im_full": weight, "ex_low": weight, "ex_high": 0.0, "im_high": 0.0, "distill_warmup": 0}
        trainer = begin(make(**own, **terms, clip=clip, amp=False))
        head = [p for p in detect_head(trainer.model.student_model).parameters() if p.requires_grad]
        before = [p.detach().clone() for p in head]
        step(trainer, 1)
        moved[weight] = torch.cat([(p - b).flatten() for p, b in zip(head, before, strict=True)]).norm().item()
    kept = moved[2.0] / moved[0.0]
    assert 0.6 < kept < 1.5 if clip == "labels" else kept < 0.25


@pytest.mark.parametrize("clip_by", ["labels", "all"])
def test_an_amplifier_that_learns_is_clipped_by_itself(make, monkeypatch, clip_by):
    trainer, norms = begin(make(amplifier="alongside", im_high=0.3, clip=clip_by)), []
    clip = torch.nn.utils.clip_grad_norm_

    def note(parameters, max_norm, **kwargs):
        parameters = list(parameters)
        norms.append({id(p) for p in parameters})
        return clip(parameters, max_norm, **kwargs)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", note)
    step(trainer, 1)
    model = trainer.model
    apart = [
        {id(p) for p in part.parameters()}
        for part in (model.amplifier, *([model.projector] if clip_by == "labels" else []))
    ]
    rest = {id(p) for p in model.parameters()}.difference(*apart)
    assert norms == [part for part in (*apart, rest) if part]
