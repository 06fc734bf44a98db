"""The amplifier that learns alongside the student: what it learns from, whom it pulls at, when it is asked anew."""

from copy import deepcopy

import pytest
import torch
from ultralytics.nn.distill_model import DistillationModel

from ds2d2_yolo.detectors.registry import DetectorModel
from ds2d2_yolo.distill.alongside import learner
from ds2d2_yolo.distill.amplifiers import fused
from ds2d2_yolo.distill.levels import detect_head, tapped
from ds2d2_yolo.distill.model import DS2D2Model
from ds2d2_yolo.engine.amplifier_trainer import with_high_frequency
from ds2d2_yolo.method.wavelet import high_frequency_map
from tests.helpers.distilling import (
    assert_same,
    make_batch,
    settings,
    tiny,
    tiny_faster_rcnn,
    tiny_retinanet,
    train_steps,
    values,
)

DETECTORS = {
    "yolo": lambda width: tiny(width=width),
    "end to end": lambda width: tiny(width=width, end2end=True, reg_max=1),
    "retinanet": lambda width: tiny_retinanet(width=2 * width),
    "faster r-cnn": lambda width: tiny_faster_rcnn(width=2 * width),
}


def beside(student, teacher, **changes):
    """The student-teacher model in training mode, its amplifier learning."""
    return DS2D2Model(student, deepcopy(teacher), None, settings(amplifier="alongside", **changes)).train()


@pytest.mark.parametrize("kind", DETECTORS)
def test_it_learns_as_in_a_stage_of_its_own(kind):
    """Loss and gradient are those of the teacher with the high-frequency layer before its head."""
    teacher, batch = DETECTORS[kind](16), make_batch(size=64)
    model = beside(DETECTORS[kind](8), teacher)
    model.boost = 512.0  # as under a loss scale: taken out again
    whole = with_high_frequency(teacher.eval(), "haar", "zero", "bands")
    whole.args = model.student_model.args
    detect_head(whole).train()
    torch.manual_seed(7)  # regions are sampled
    loss, said = model(batch)
    (3 * loss).sum().backward()
    torch.manual_seed(7)
    expected, items = whole.loss(batch, whole(batch["img"]))
    (3 * expected.sum()).backward()
    torch.testing.assert_close(loss[-1], expected.sum(), rtol=1e-3, atol=1e-5)
    assert said["amplifier"].item() == pytest.approx(sum(values(items).values()), rel=1e-3)
    wanted = {name: p.grad for name, p in detect_head(whole).named_parameters()}
    found = {name: p.grad for name, p in detect_head(model.amplifier).named_parameters()}
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        if gradient is None:
            assert wanted[name] is None or "dfl" in name
        else:
            torch.testing.assert_close(gradient, wanted[name], rtol=2e-2, atol=1e-3 * wanted[name].abs().max().item())
    assert sum(g is not None and bool(g.any()) for g in found.values()) > 5


def test_its_loss_falls():
    model, batch, losses = beside(tiny(width=8), tiny(width=16)), make_batch(), []
    optimizer = torch.optim.AdamW(model.amplifier.parameters(), lr=0.01)
    for _ in range(12):
        loss, items = model(batch)
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        losses.append(items["amplifier"].item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("kind", ["yolo", "retinanet"])
def test_it_pulls_at_nothing_else(kind):
    """The student's gradient is, bit for bit, that of a run whose amplifier is the same head, trained beforehand."""
    student, teacher, batch = DETECTORS[kind](8), DETECTORS[kind](16), make_batch(size=64)
    ours = beside(deepcopy(student), teacher)
    theirs = DS2D2Model(student, deepcopy(teacher), deepcopy(detect_head(teacher)), settings()).train()
    theirs.load_state_dict({k: v for k, v in ours.state_dict().items() if not k.startswith("amplifier")})
    for model in (ours, theirs):
        loss, items = model(batch)
        loss.sum().backward()
    assert items.keys() == ours(batch)[1].keys() - {"amplifier"}
    wanted = {name: p.grad for name, p in theirs.named_parameters()}
    found = {name: p.grad for name, p in ours.named_parameters() if not name.startswith("amplifier")}
    assert found.keys() == wanted.keys() and any("projector" in name for name in found)
    assert all(torch.equal(found[name], g) for name, g in wanted.items() if g is not None)


def test_it_is_asked_as_it_was_when_last_renewed():
    model = beside(tiny(width=8), tiny(width=16))
    began = {k: v.clone() for k, v in model._frozen.high.head.state_dict().items()}
    train_steps(model, steps=2)
    assert_same(began, model._frozen.high.head.state_dict())
    now = fused(deepcopy(detect_head(model.amplifier)).eval())
    model.renew_next = True
    model(make_batch())
    assert_same(now.state_dict(), model._frozen.high.head.state_dict())
    assert any(not torch.equal(v, began[k]) for k, v in now.state_dict().items())
    assert not any(p.requires_grad for p in model._frozen.high.head.parameters())
    assert not model.renew_next


def test_half_precision_takes_the_factor_out_again():
    """What passes half-precision layers is multiplied, what leaves them is not."""
    model, grads = beside(tiny(width=8), tiny(width=16)), []
    for model.boost in (1.0, 256.0):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            model(make_batch())[0].sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.amplifier.parameters() if p.grad is not None]))
    assert (grads[0] - grads[1]).norm() < 0.1 * grads[0].norm()


def test_the_loss_of_an_end_to_end_head_follows_the_epochs():
    """As Ultralytics' trainer has it: 0.8 of one to many at first, 0.1 at last; in a resumed run too."""
    model = beside(DETECTORS["end to end"](8), DETECTORS["end to end"](16))
    model.student_model.args.epochs, seen = 5, []
    for model.amplifier.epoch in (2, 4, 0):
        model(make_batch())
        seen.append(model.amplifier.criterion.o2m)
    assert seen == pytest.approx([0.45, 0.1, 0.8])


def test_it_learns_in_some_steps_alone():
    model = beside(tiny(width=8), tiny(width=16))
    learned, terms = [], []
    for model.learn_next in (True, False, True):
        model.zero_grad()
        loss, items = model(make_batch())
        loss.sum().backward()
        learned.append(any(p.grad is not None for p in model.amplifier.parameters()))
        terms.append(values(items))
    assert learned == [True, False, True]
    assert terms[1]["amplifier"] == terms[0]["amplifier"] > 0  # as it was last, for the log
    assert terms[1]["im_high"] > 0


def test_without_its_term_there_is_none():
    model = beside(tiny(width=8), tiny(width=16), im_high=0)
    assert model.amplifier is None and model._frozen.high is None
    assert "amplifier" not in model(make_batch())[1]


def test_it_is_in_the_state_and_in_ultralytics_classes():
    model = beside(tiny(width=8), tiny(width=16))
    ema, items = train_steps(model)
    assert values(items)["amplifier"] > 0
    held = {k for k in model.state_dict() if k.startswith("amplifier.model.head.")}
    assert held == {f"amplifier.model.head.{k}" for k in detect_head(model.amplifier).state_dict()}
    assert not torch.equal(ema.ema.state_dict()[min(held)], beside(tiny(), tiny(width=16)).state_dict()[min(held)])
    assert model.measured()["amplifier"] == pytest.approx(values(items)["amplifier"])
    again = beside(tiny(width=8), tiny(width=16))
    again.restore(model.measured())
    assert again.measured() == model.measured()
    view = deepcopy(ema.ema.as_ultralytics({}))
    assert type(view) is DistillationModel
    assert_same(ema.ema.state_dict(), view.state_dict())
    assert {type(m).__module__.split(".")[0] for m in view.modules()} <= {"torch", "ultralytics"}
    assert model.eval().loss(make_batch())[1]["amplifier"] == 0  # validation's columns are training's


def test_nor_does_a_detectors_amplifier_ask_for_other_classes():
    model = beside(tiny(width=8, strides=(8, 16, 32)), tiny_retinanet())
    view = deepcopy(model.as_ultralytics({})).half().float()
    assert_same(
        {k: v.half().float() if v.is_floating_point() else v for k, v in model.state_dict().items()}, view.state_dict()
    )
    assert {type(m).__module__.split(".")[0] for m in view.modules()} <= {"torch", "ultralytics"}
    assert isinstance(model.amplifier, DetectorModel)  # the model itself is as it was


def test_its_last_loss_is_restored_where_the_student_is():
    model = beside(tiny(width=8), tiny(width=16))
    measured = {**model.measured(), "amplifier": 1.5}
    model.to("meta").restore(measured)  # stands in for a GPU
    assert model._known["amplifier"].is_meta


@pytest.mark.parametrize("kind", ["bands", "residual"])
def test_a_stage_sees_the_high_frequencies_that_are_asked_for(kind):
    teacher, seen = tiny().eval(), []
    whole = with_high_frequency(teacher, "db2", "symmetric", kind).eval()
    detect_head(whole).register_forward_pre_hook(lambda _, args: seen.extend(m.clone() for m in args[0]))
    with torch.no_grad(), tapped(detect_head(teacher)) as neck:
        teacher(image := torch.rand(1, 3, 72, 72))
        whole(image)
    for found, feature in zip(seen, neck, strict=True):
        torch.testing.assert_close(found, high_frequency_map(feature, "db2", "symmetric", kind))


def test_moves_reach_it():
    model = beside(tiny(width=8), tiny(width=16)).double()
    assert {t.dtype for t in model.amplifier.state_dict().values() if t.is_floating_point()} == {torch.float64}
    assert detect_head(model.amplifier).stride.dtype == torch.float64


def test_class_weights_reach_it():
    """As they would in a stage of its own."""
    model, other = (beside(tiny(width=8), tiny(width=16)) for _ in range(2))
    model.student_model.class_weights = torch.tensor([5.0, 5.0, 5.0])
    heavy, light = (m(make_batch())[1]["amplifier"] for m in (model, other))
    assert heavy > 2 * light


def test_its_layers_are_not_the_ones_that_freeze_names():
    names = [name for name, _ in learner(tiny()).named_parameters()]
    assert names and not any(f"model.{number}." in name for name in names for number in range(30))
