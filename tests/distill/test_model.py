"""The student-teacher model: what it trains, saves and copies, and what never changes."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from ultralytics.nn.distill_model import DistillationModel
from ultralytics.utils.torch_utils import ModelEMA

from ds2d2_yolo.distill.levels import detect_head
from ds2d2_yolo.engine.settings import TERMS
from ds2d2_yolo.errors import UserError
from tests.helpers.distilling import PAPER, assert_same, distilled, frozen_state, make_batch, tiny, train_steps

# ---- what is trained, saved and copied, and what is not


def test_the_state_is_the_students_and_the_adapters():
    student = tiny(width=8)
    names = set(student.state_dict())
    model = distilled(student, tiny(width=16))
    assert set(model.state_dict()) == {f"student_model.{k}" for k in names} | {
        "projector.0.weight",
        "projector.1.weight",
    }
    parts = (model._frozen.teacher, model._frozen.full.head, model._frozen.high.head)
    foreign = [m for part in parts for m in part.modules()]
    assert not {id(m) for m in model.modules()} & {id(m) for m in foreign}
    tensors = {p.data_ptr() for m in foreign for p in m.parameters()}
    assert not {p.data_ptr() for p in model.parameters()} & tensors
    assert all(p.requires_grad for n, p in model.named_parameters() if ".dfl." not in n)


@pytest.mark.parametrize("end2end, reg_max", [(False, 16), (True, 1)])
def test_teacher_and_amplifiers_never_change(end2end, reg_max):
    model = distilled(tiny(width=8), tiny(width=16, end2end=end2end, reg_max=reg_max, seed=1), **PAPER)
    before = frozen_state(model)
    train_steps(model)
    model.eval()
    model.train()
    assert_same(before, frozen_state(model))
    parts = (model._frozen.teacher, model._frozen.full.head, model._frozen.high.head)
    assert not any(m.training for part in parts for m in part.modules())
    assert all(p.grad is None and not p.requires_grad for part in parts for p in part.parameters())
    assert all(m.training for m in model.student_model.modules())


def test_adapters_are_trained():
    model = distilled(tiny(width=8), tiny(width=16))
    before = [a.weight.clone() for a in model.projector]
    train_steps(model, steps=1)
    assert all((a.weight - b).abs().max() > 0 for a, b in zip(model.projector, before, strict=True))


@pytest.mark.parametrize(
    "width, adapter, expected",
    [
        (16, "auto", [nn.Conv2d, nn.Conv2d]),
        (8, "auto", [nn.Identity, nn.Identity]),
        (8, "always", [nn.Conv2d, nn.Conv2d]),
        (8, "never", [nn.Identity, nn.Identity]),
    ],
)
def test_adapters_are_there_where_they_are_needed(width, adapter, expected):
    model = distilled(tiny(width=8), tiny(width=width), adapter=adapter)
    assert [type(a) for a in model.projector] == expected
    for adapter, level in zip(model.projector, model.levels, strict=True):
        if isinstance(adapter, nn.Conv2d):
            channels = {8: (8, width), 16: (16, 2 * width)}[level.stride]
            assert (adapter.in_channels, adapter.out_channels, adapter.bias) == (*channels, None)
            assert adapter.kernel_size == (1, 1)


def test_adapters_where_only_some_levels_differ():
    model = distilled(tiny(width=16), tiny(width=16, last=40))
    assert [type(a) for a in model.projector] == [nn.Identity, nn.Conv2d]
    assert (model.projector[1].in_channels, model.projector[1].out_channels) == (32, 40)


def test_levels_that_the_teacher_lacks_have_none():
    model = distilled(tiny((8, 16, 32), width=16), tiny((8, 32), width=16))
    assert [level.stride for level in model.levels] == [8, 32]
    assert [type(a) for a in model.projector] == [nn.Identity, nn.Identity]


def test_channels_that_differ_need_an_adapter():
    with pytest.raises(UserError, match="stride 8 the student has 8 channels and the teacher 16"):
        distilled(tiny(width=8), tiny(width=16), adapter="never")


def test_copies_hold_no_teacher():
    model = distilled(tiny(width=8), tiny(width=16))
    loss, _ = model(make_batch())  # with a graph and a criterion, as in the middle of training
    assert loss.requires_grad
    for copy in (deepcopy(model), ModelEMA(model).ema):
        assert copy._frozen is None
        assert_same(model.state_dict(), copy.state_dict())
        ours = {p.data_ptr() for p in model.parameters()}
        assert not ours & {p.data_ptr() for p in copy.parameters()}
        copy.eval()
        copy.float().to("cpu")
        with torch.inference_mode():
            _, items = copy.loss(make_batch(), copy(make_batch()["img"]))
        assert list(items)[-4:] == list(TERMS)
    assert model._frozen is not None


def test_the_ema_follows_student_and_adapters():
    model = distilled(tiny(width=8), tiny(width=16))
    start = {k: v.clone() for k, v in model.state_dict().items()}
    ema, _ = train_steps(model, steps=2)
    moved = [k for k, v in ema.ema.state_dict().items() if v.is_floating_point() and not torch.equal(v, start[k])]
    assert "projector.0.weight" in moved
    assert "student_model.model.0.conv.weight" in moved


def test_as_ultralytics_is_ultralytics_own_class():
    model = distilled(tiny(width=8), tiny(width=16))
    model(make_batch())
    view = model.as_ultralytics(model.balance.state())
    assert type(view) is DistillationModel
    assert_same(model.state_dict(), view.state_dict())
    copy = deepcopy(view).half()  # as save_model does
    assert copy.teacher_model is None
    assert copy.student_model is not model.student_model
    assert {type(m).__module__.split(".")[0] for m in copy.modules()} <= {"torch", "ultralytics"}
    assert model.student_model.model[0].conv.weight.dtype == torch.float32  # the live model is untouched
    assert not any(m._forward_hooks for m in model.modules())
    image = make_batch()["img"]
    expected, found = model.eval()(image)[0], view.eval()(image)[0]
    assert torch.equal(expected, found)


def test_a_resumed_model_takes_the_state_back():
    model = distilled(tiny(width=8), tiny(width=16))
    ema, _ = train_steps(model, steps=1)
    again = distilled(tiny(width=8, seed=5), tiny(width=16))
    again.load_state_dict(ema.ema.as_ultralytics({}).state_dict())
    assert_same(ema.ema.state_dict(), again.state_dict())


def test_the_teacher_comes_apart_but_the_students_head_stays():
    student, teacher = tiny(), tiny(width=16)
    head = detect_head(student)
    model = distilled(student, teacher)
    assert detect_head(model.student_model) is head
    assert not head._forward_pre_hooks
    with pytest.raises(UserError):
        detect_head(model._frozen.teacher)


def test_moves_reach_the_frozen_part():
    model = distilled(tiny(), tiny(width=16))
    model.to("meta")
    frozen = model._frozen
    modules = (frozen.teacher, frozen.full.head, frozen.high.head, model)
    tensors = [frozen.full.head.stride, *(p for m in modules for p in m.parameters())]
    assert {t.device.type for t in tensors} == {"meta"}
