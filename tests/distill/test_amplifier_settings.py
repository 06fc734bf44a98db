"""What counts within an amplifier's loss: boxes beside classes, and the classes that are trained alone."""

import pytest
import torch

from ds2d2_yolo.distill.amplifiers import DenseAmplifier, Step, amplifier_for, as_set
from ds2d2_yolo.distill.levels import detect_head, tapped
from ds2d2_yolo.distill.model import DS2D2Model
from ds2d2_yolo.method.implicit import dense_implicit_loss, roi_implicit_loss
from tests.helpers.distilling import make_batch, settings, tiny, tiny_faster_rcnn, tiny_retinanet

REGIONS = torch.tensor([[0.0, 8, 8, 60, 50], [1, 30, 10, 62, 60], [1, 0, 0, 20, 20]])


@pytest.fixture(params=["yolo", "retinanet", "faster rcnn"])
def asked(request):
    """A head of three classes, maps of student and teacher, and a step."""
    model = {"yolo": tiny, "retinanet": tiny_retinanet, "faster rcnn": tiny_faster_rcnn}[request.param]().eval()
    batch = make_batch()
    with torch.no_grad(), tapped(detect_head(model)) as maps:
        model(batch["img"])
    generator = torch.Generator().manual_seed(1)
    student = [m + 0.3 * m.std() * torch.randn(m.shape, generator=generator) for m in maps]
    return detect_head(model), student, list(maps), Step(batch, {"rois": REGIONS})


def loss(asked, **own):
    head, student, teacher, step = asked
    amplifier = as_set(head, list(range(len(teacher))), settings(**own))
    return amplifier.loss(student, teacher, Step(step.batch, step.preds)).item()


def test_boxes_count_for_as_much_as_they_are_told(asked):
    none, one, six = (loss(asked, implicit_box=gain) for gain in (0.0, 1.0, 6.0))
    assert 0 < none < one and six - none == pytest.approx(6 * (one - none), rel=1e-3)


@pytest.mark.parametrize("classes", [1, [2, 0, 2], [0, 1, 2]], ids=str)
def test_classes_that_are_left_out_are_not_compared(asked, classes):
    head, student, teacher, step = asked
    levels, kept = list(range(len(teacher))), [1] if classes == 1 else sorted(set(classes))
    every, some = amplifier_for(head, levels), amplifier_for(head, levels, classes=classes)
    if isinstance(every, DenseAmplifier):
        (z, boxes), (target, wanted) = every(student), every(teacher)
        weights = some.weights(some(teacher), teacher, step)
        parts = dense_implicit_loss(z[..., kept], boxes, target[..., kept], wanted, **weights)
        assert weights["normalizer"] == pytest.approx(
            target[..., kept].amax(-1).sigmoid().sum().clamp(min=2).item(), rel=1e-5
        )
    else:
        (z, deltas), (target, wanted) = every(student, REGIONS), every(teacher, REGIONS)
        deltas, wanted = (d.view(len(d), 3, 4)[:, kept].flatten(1) for d in (deltas, wanted))
        parts = roi_implicit_loss(z[:, [*kept, 3]], target[:, [*kept, 3]], deltas, wanted)
    assert some.loss(student, teacher, step).item() == pytest.approx(sum(parts).item(), rel=1e-5)
    whole = every.loss(student, teacher, Step(step.batch, step.preds)).item()
    assert (some.loss(student, teacher, step).item() == pytest.approx(whole)) == (len(kept) == 3)


def test_both_amplifiers_of_a_model_are_so():
    teacher = tiny(width=16)
    own = settings(implicit_box=6.0)
    own.classes = 2
    model = DS2D2Model(tiny(), teacher, detect_head(teacher), own)
    assert [(a.box_gain, a.classes) for a in (model._frozen.full, model._frozen.high)] == [(6.0, [2])] * 2
