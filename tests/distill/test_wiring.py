"""What a model hands on to the parts that are tested by themselves."""

import pytest
import torch

from ds2d2_yolo.distill import model as module
from ds2d2_yolo.distill.objects import scale_weights
from tests.helpers.distilling import PAPER, distilled, make_batch, tiny


def test_the_boost_reaches_all_that_passes_half_precision(monkeypatch):
    seen, early, learn = [], module.EarlyGradients, module.learn
    monkeypatch.setattr(module, "EarlyGradients", lambda *a: seen.append(a[3]) or early(*a))
    monkeypatch.setattr(module, "learn", lambda *a: seen.append(a[4]) or learn(*a))
    model = distilled(tiny(), tiny(width=16), **{**PAPER, "amplifier": "alongside"})
    model.boost = 3.0
    model(make_batch())
    assert seen == [3.0, 3.0]


def test_scale_weights_of_no_objects():
    batch = {"img": torch.rand(2, 3, 32, 32), "bboxes": torch.zeros(0), "batch_idx": torch.zeros(0)}
    [weights] = scale_weights(batch, [torch.rand(2, 8, 4, 4)], "haar", "zero")
    none = {**batch, "bboxes": torch.zeros(0, 4)}
    assert torch.equal(weights, scale_weights(none, [torch.rand(2, 8, 4, 4)], "haar", "zero")[0])


@pytest.mark.parametrize("padding", ["zero", "periodization"])
def test_scale_weights_have_the_bands_size_in_every_padding(padding):
    model = distilled(tiny(), tiny(width=16), **PAPER, wavelet="db2", wavelet_padding=padding)
    assert model(make_batch())[1]["ex_low"] > 0
