"""RetinaNet and Faster R-CNN distilled as published."""

from copy import deepcopy

import pytest
import torch

from ds2d2_yolo.distill.amplifiers import Step
from ds2d2_yolo.engine.settings import TERMS
from ds2d2_yolo.errors import UserError
from ds2d2_yolo.method.implicit import roi_implicit_loss
from tests.helpers.distilling import PAPER, distilled, loss_at_neck, make_batch, only, values
from tests.helpers.pairs import built, pair


@pytest.mark.parametrize("kind", ["retinanet", "faster-rcnn"])
def test_published_has_one_adapter_for_the_explicit_stream(kind):
    model = pair(kind, kind, width=16, published=True, align=False)
    assert len({id(a) for a in model.projector}) == 1
    assert (model.projector[0].in_channels, model.projector[0].out_channels, model.projector[0].bias) == (16, 16, None)
    assert len([name for name, _ in model.named_parameters() if name.startswith("projector")]) == 1
    loss, items, _ = loss_at_neck(model, make_batch(size=96))
    assert all(items[name] > 0 for name in TERMS)
    for name in TERMS:
        alone = pair(kind, kind, width=16, **only(name), published=True, align=False)
        alone(make_batch(size=96))[0][-1].backward()
        assert (alone.projector[0].weight.grad is not None) == name.startswith("ex_"), name


def test_published_heads_see_the_students_own_maps():
    teacher = built("retinanet", 16, 0)
    for published in (False, True):
        model = distilled(deepcopy(teacher), teacher, **PAPER, adapter="always", align=False, published=published)
        model.student_model.freeze_statistics()
        _, items = model(make_batch(size=96))
        assert all(items[name] > 1e-3 for name in ("ex_low", "ex_high"))  # a fresh adapter mixes the channels
        assert all((items[name] < 1e-4) == published for name in ("im_full", "im_high")), values(items)


@pytest.mark.parametrize("student, teacher", [("retinanet", "retinanet"), ("yolo", "retinanet")])
def test_published_needs_equal_channels(student, teacher):
    with pytest.raises(UserError, match="one adapter for all levels, but these have {.*} channels"):
        pair(student, teacher, published=True)


@pytest.mark.parametrize("kind", ["retinanet", "faster-rcnn"])
def test_published_reaches_both_amplifiers(kind):
    model = pair(kind, kind, width=16, published=True)
    assert model._frozen.full.published and model._frozen.high.published
    ours, theirs = (values(pair(kind, kind, 16, published=p, align=False)(make_batch(size=96))[1]) for p in (0, 1))
    assert all(theirs[name] > 2 * ours[name] for name in ("im_full", "im_high"))  # N, or the number of regions


def test_published_weights_do_not_hang_on_the_batch():
    """The same image once and four times: the number of regions is that of two of it."""
    model = pair("faster-rcnn", "faster-rcnn", width=16, published=True)
    amplifier, rows = model._frozen.full, torch.tensor([[0.0, 4, 4, 40, 40], [0, 10, 20, 60, 50], [0, 0, 0, 90, 90]])
    maps = [[torch.randn(1, 16, 24 // 2**i, 24 // 2**i) for i in range(5)] for _ in range(2)]
    one = amplifier.loss(*maps, Step({}, {"rois": rows}))
    each = torch.cat([torch.cat([torch.full((3, 1), float(i)), rows[:, 1:]], 1) for i in range(4)])
    four = amplifier.loss(*([m.repeat(4, 1, 1, 1) for m in side] for side in maps), Step({}, {"rois": each}))
    torch.testing.assert_close(one, four)
    amplifier.published = False
    with torch.no_grad():
        logits, deltas = zip(*(amplifier(side, rows) for side in maps), strict=True)
    cls, box = roi_implicit_loss(*logits, *deltas)
    torch.testing.assert_close(one, 6 * cls + box)
