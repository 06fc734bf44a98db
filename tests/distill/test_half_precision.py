"""Gradients in half precision: neither flushed to zero nor infinite, and where they are, seen."""

import pytest
import torch
from torch import nn

from ds2d2_yolo.distill.early import EarlyGradients, settled
from ds2d2_yolo.engine.settings import TERMS
from tests.distill.test_early import sure
from tests.helpers.distilling import distilled, make_batch, tiny, tiny_faster_rcnn, tiny_retinanet


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("kind", ["maps", "adapted maps alone"])
def test_small_gradients_survive_half_precision(together, kind):
    factor, small = 0.5, 2.0**-20  # far below float16's smallest number once divided by the number of cells
    weight = nn.Parameter(torch.ones(1))
    leaf = torch.ones(1, 1, 64, 64, requires_grad=True)
    half = leaf.half() if kind == "maps" else leaf

    def adapt(maps):
        return [m.half() * weight.half() for m in maps]

    early = EarlyGradients([half], adapt, [weight], boost=2.0**20)
    group = [lambda maps: {"a": maps.adapted[0].float().mean() * small}]
    loss = early.together(group, {"a": factor})[0] if together else early.separate(group, {"a": factor})["a"] * factor
    found = torch.autograd.grad(loss * 2.0**20, [leaf, weight])  # the outer factor: a loss scale
    expected = factor * small * 2.0**20
    torch.testing.assert_close(found[0], torch.full_like(leaf, expected / leaf.numel()))
    torch.testing.assert_close(found[1], torch.full_like(weight, expected))


def test_small_gradients_of_a_learner_survive_half_precision():
    small = 2.0**-14
    weight = nn.Parameter(torch.ones(1))
    found, lost = (
        torch.autograd.grad(
            settled((weight.half() * torch.ones(64, 64).half()).float().mean() * small, [weight], b), weight
        )
        for b in (2.0**20, 1.0)
    )
    assert found[0].item() == pytest.approx(small, rel=1e-3) and lost[0].item() < small / 2


@pytest.mark.parametrize("factor", [None, 1e-3, 1.0])
def test_a_loss_by_itself_is_boosted_as_far_as_half_precision_goes(factor):
    """It may be a hundred times what it is once it is weighted."""
    weight, leaf = nn.Parameter(torch.ones(1)), torch.ones(1, 1, 16, 16, requires_grad=True)
    early = EarlyGradients([leaf.half()], lambda maps: [m * weight.half() for m in maps], [weight], boost=2.0**16)
    for large in (200.0, 20.0):  # which overflows at the maps, or at the adapter alone: it has 256 times as much
        loss = early.separate([lambda maps, by=large: {"a": maps.adapted[0].float().sum() * by}], {"a": factor})["a"]
        found = torch.autograd.grad(loss * 2.0**-4, [leaf, weight])
        torch.testing.assert_close(found[0], torch.full_like(leaf, large / 16))
        torch.testing.assert_close(found[1], torch.full_like(weight, 16 * large))


@pytest.mark.parametrize("make", [tiny, tiny_retinanet, tiny_faster_rcnn])
def test_all_terms_are_measured_at_the_loss_scale_that_training_begins_with(make):
    torch.manual_seed(0)
    model = sure(distilled(make(width=16), make(width=24, seed=1)))
    model.boost = 2.0**16
    with torch.autocast("cpu", torch.float16):
        loss, _ = model(make_batch((3, 2), size=96))
    assert model.balance.scales.keys() == set(TERMS)
    (loss[-1] * 2.0**10).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_what_overflows_is_seen():
    """The loss scale must learn of it and shrink."""
    leaf = torch.full((1, 1, 4, 4), 1.0, requires_grad=True)
    early = EarlyGradients([leaf.half()], lambda maps: maps, boost=2.0**20)
    loss, _ = early.together([lambda maps: {"a": maps.adapted[0].float().sum()}], {"a": 1.0})
    (found,) = torch.autograd.grad(loss, [leaf])
    assert not found.isfinite().any()


def test_a_boost_that_overflows_is_lowered_and_not_given_up():
    leaf, slopes = torch.ones(1, 1, 16, 16, requires_grad=True), torch.full((1, 1, 16, 16), 2.0**-26)
    slopes[0, 0, 0, 0] = 200.0  # which a boost of 2^8 is too much for, and the others need one
    early = EarlyGradients([leaf.half()], lambda maps: [m * 1 for m in maps], boost=2.0**16)
    loss = early.separate([lambda maps: {"a": (maps.adapted[0].float() * slopes).sum()}])["a"]
    (found,) = torch.autograd.grad(loss * 2.0**4, [leaf])
    assert found[0, 0, 1, 1].item() == pytest.approx(2.0**-22)
