"""The student-teacher model's loss: four terms, on inputs of every kind."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from ds2d2_yolo.distill.objects import scale_weights
from ds2d2_yolo.engine.settings import TERMS
from tests.helpers.distilling import (
    PAPER,
    assert_same,
    distilled,
    family,
    frozen_state,
    loss_at_neck,
    make_batch,
    norm_of_gradient,
    only,
    tiny,
    train_steps,
    values,
)

# ---- the loss


def test_the_loss_is_detections_with_the_terms_appended():
    torch.manual_seed(0)
    student, batch = tiny(width=8), make_batch()
    expected, names = deepcopy(student).train().loss(batch)
    model = distilled(student, tiny(width=16), **PAPER)
    loss, items = model(batch)
    torch.testing.assert_close(loss[:-1], expected, rtol=1e-5, atol=1e-6)
    assert list(items) == [*names, *TERMS]
    total = sum(items[name] for name in TERMS) * len(batch["img"])
    torch.testing.assert_close(loss[-1], total, rtol=1e-5, atol=1e-6)
    assert not any(v.requires_grad for v in items.values())


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("end2end, reg_max", [(False, 16), (True, 1)])
def test_each_term_alone_moves_the_students_neck(name, end2end, reg_max):
    heads = {"end2end": end2end, "reg_max": reg_max}
    for changes in ({"balance": "fixed", "align": False}, {"balance": "gradient", "align": True}):
        model = distilled(tiny(**heads), tiny(width=16, seed=1, **heads), **only(name), **changes)
        loss, items, maps = loss_at_neck(model, make_batch())
        for one in maps:
            assert torch.autograd.grad(loss[-1], one, retain_graph=True)[0].abs().max() > 0
        gradient = torch.autograd.grad(loss[-1], model.student_model.model[0].conv.weight)[0]
        assert 0 < gradient.norm() < float("inf")
        assert items[name] > 0
        assert all(items[other] == 0 for other in TERMS if other != name)


def test_a_term_that_is_off_is_not_computed(monkeypatch):
    asked = []
    monkeypatch.setattr("ds2d2_yolo.distill.model.explicit_loss", lambda *a: asked.append("explicit"))
    monkeypatch.setattr("ds2d2_yolo.distill.model.high_frequency_map", lambda *a: asked.append("high"))
    model = distilled(tiny(), tiny(width=16), **only("im_full"))
    assert model._frozen.high is None
    model(make_batch())
    assert asked == []
    monkeypatch.undo()
    model = distilled(tiny(), tiny(width=16), **only("ex_low"))
    model._frozen.full = None  # must not be asked
    assert model(make_batch())[1]["ex_low"] > 0


def test_all_terms_off_is_plain_training():
    student, batch = tiny(), make_batch()
    expected, _ = deepcopy(student).train().loss(batch)
    loss, items = distilled(student, tiny(width=16), **dict.fromkeys(TERMS, 0.0))(batch)
    assert torch.equal(loss, torch.cat([expected, torch.zeros(1)]))
    assert all(items[name] == 0 for name in TERMS)


def test_validation_has_detection_items_and_zeros():
    model = distilled(tiny(), tiny(width=16)).eval()
    model._frozen = None  # as in the EMA, which is what is validated
    batch = make_batch()
    expected, names = deepcopy(model.student_model).loss(batch)
    for preds in (None, model(batch["img"])):
        loss, items = model.loss(batch, preds)
        torch.testing.assert_close(loss, expected)
        assert list(items) == [*names, *TERMS]
        assert all(items[name] == 0 for name in TERMS)
        assert all(items[name] == names[name] for name in names)


def test_a_student_that_equals_its_teacher_has_nothing_to_learn():
    teacher = tiny()
    model = distilled(deepcopy(teacher), teacher, adapter="never", **PAPER)
    for module in model.student_model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # the teacher's statistics, not the batch's
    loss, items, maps = loss_at_neck(model, make_batch())
    assert all(0 <= items[name] < 1e-6 for name in TERMS), values(items)
    assert all(one.isfinite().all() for one in torch.autograd.grad(loss[-1], maps))


@pytest.mark.parametrize(
    "student, teacher",
    [
        ("yolo11n", "yolov8n-p2"),
        ("yolo11n", "yolov8n-p6"),
        ("yolo11n", "yolo26n"),
        ("yolo26n", "yolov5n"),
        ("yolo26n-p2", "yolov10n"),
        ("yolov10n", "yolo26n-p6"),
        ("yolov3-tiny", "yolo12n"),
    ],
)
def test_families_mix(student, teacher):
    model = distilled(family(student), family(teacher, seed=1), **PAPER)
    size = 128 if "p6" in student + teacher else 64
    assert model.stride.max() == size / 2
    before = frozen_state(model)
    loss, items, maps = loss_at_neck(model, make_batch(size=size))
    assert all(0 < items[name] < 1e4 for name in TERMS), values(items)
    shared = [maps[level.student] for level in model.levels]
    assert norm_of_gradient(loss[-1], shared) > 0
    loss.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert all(a.weight.grad.abs().max() > 0 for a in model.projector if isinstance(a, nn.Conv2d))
    assert_same(before, frozen_state(model))


# ---- inputs of every kind


@pytest.mark.parametrize("balance", ["fixed", "gradient"])
@pytest.mark.parametrize("counts", [(0, 0), (0, 2), (3000, 0), (3000, 3000)], ids=str)
def test_terms_are_bounded_for_empty_and_crowded_images(counts, balance):
    changes = {**dict.fromkeys(TERMS, 1.0), "balance": balance}
    model = distilled(tiny(), tiny(width=16, seed=1), **changes)
    with torch.no_grad():  # a teacher that sees objects everywhere, where there are none
        for layers in model._frozen.full.cls:
            layers[-1].bias.fill_(4.0)
    size = 160
    loss, items, _ = loss_at_neck(model, make_batch(counts, size))
    measured = any(counts)  # a batch without objects gives no weights
    # A box adds a mass of one to every level (DS2D2's scale weight), whatever it covers
    crowd = sum(1 + sum(counts) / len(counts) / (size / stride / 2) ** 2 for stride in (8, 16))
    assert all(0 < items[name] < 10 * crowd for name in ("ex_low", "ex_high")), values(items)
    assert all(0 < items[name] < 10 for name in ("im_full", "im_high")), values(items)
    loss.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    shares = model.balance.shares()
    assert sum(shares.values()) == pytest.approx(float(measured))
    assert balance == "fixed" or not measured or shares["im_full"] == pytest.approx(0.2, rel=1e-3)


def test_a_teacher_that_sees_nothing_leaves_the_terms_bounded():
    model = distilled(tiny(), tiny(width=16, seed=1), **PAPER)
    with torch.no_grad():
        for layers in model._frozen.full.cls:
            layers[-1].bias.fill_(-30.0)
    _, items = model(make_batch((0, 0)))
    assert all(torch.isfinite(v) and v < 1000 for v in items.values()), values(items)


@pytest.mark.parametrize("size", [(96, 96), (160, 96), (32, 224), (32, 32)], ids=str)
def test_maps_of_odd_sizes(size):
    levels = (8, 32)  # 96 px are three cells of stride 32, and 32 px a single one
    model = distilled(tiny(levels), tiny(levels, width=16, seed=1), **PAPER)
    _, items = model(make_batch(size=size))
    assert all(torch.isfinite(v) for v in items.values()), values(items)
    assert all(items[name] > 0 for name in ("ex_low", "ex_high", "im_full", "im_high")), values(items)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_of_other_channels(channels):
    model = distilled(tiny(channels=channels), tiny(channels=channels, width=16), **PAPER)
    _, items = model(make_batch(channels=channels))
    assert all(items[name] > 0 for name in TERMS)


@pytest.mark.parametrize("wavelet", ["haar", "db2", "sym4", "bior2.2"])
@pytest.mark.parametrize("padding", ["zero", "symmetric"])
def test_wavelets_and_paddings(wavelet, padding):
    model = distilled(tiny(), tiny(width=16), **PAPER, wavelet=wavelet, wavelet_padding=padding)
    _, items = model(make_batch(size=(80, 112)))
    assert all(0 < items[name] < 1000 for name in TERMS), values(items)


def items_with(size=64, **changes):
    torch.manual_seed(0)
    model = distilled(tiny(), tiny(width=16, seed=1), **PAPER, adapter="always", **changes)
    return values(model(make_batch((6, 3), size=size))[1])


def test_what_is_switched_changes_only_what_it_should():
    plain = items_with()
    for change in ({"disw": False}, {"normalize": "none"}, {"normalize": "teacher"}):
        found = items_with(**change)
        for name in TERMS:
            same = found[name] == pytest.approx(plain[name], rel=1e-6)
            assert same == name.startswith("im_"), (change, name)
    assert items_with(disw=False)["ex_low"] < plain["ex_low"]  # boxes add weight, they take none away
    found = items_with(align=False)
    assert all(found[name] != pytest.approx(plain[name], rel=0.5) for name in ("im_full", "im_high"))
    found = items_with(wavelet="db2")
    assert found["im_full"] == pytest.approx(plain["im_full"])
    assert all(found[name] != pytest.approx(plain[name]) for name in ("ex_low", "ex_high", "im_high"))
    found = items_with(high_frequency="residual")
    assert {name for name in TERMS if found[name] != pytest.approx(plain[name], rel=1e-3)} == {"im_high"}
    odd, found = items_with(size=72), items_with(size=72, wavelet_padding="symmetric")  # maps of 9 and 5 cells
    assert {name for name in TERMS if found[name] != pytest.approx(odd[name])} == {"ex_low", "ex_high", "im_high"}


@pytest.mark.parametrize("normalize", ["none", "channel", "teacher"])
def test_every_normalisation_trains(normalize):
    model = distilled(tiny(), tiny(width=16), normalize=normalize)
    train_steps(model, steps=2)
    assert all(p.isfinite().all() for p in model.parameters())


def test_bfloat16_autocast_is_close_to_float32():
    def items(dtype):
        torch.manual_seed(0)
        model = distilled(tiny(), tiny(width=16, seed=1), **PAPER)
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss, found = model(make_batch())
        loss.sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        assert all(found[name].dtype == torch.float32 for name in TERMS)
        assert loss.dtype == torch.float32
        return values(found)

    exact, rough = items(None), items(torch.bfloat16)
    for name in TERMS:
        assert rough[name] == pytest.approx(exact[name], rel=0.05), name


def test_boxes_weigh_where_they_are():
    batch = make_batch((1, 0), size=(64, 128))
    batch["bboxes"] = torch.tensor([[0.75, 0.25, 0.25, 0.25]])  # 80..112 x 8..24 px of 128 x 64
    (weights,) = scale_weights(batch, [torch.zeros(2, 1, 8, 16)], "haar", "zero")
    assert weights.shape == (2, 1, 4, 8)
    assert (weights[1] == 1).all()
    assert weights[0].sum() - 32 == pytest.approx(1)
    rows, columns = (weights[0, 0] > 1).nonzero().unbind(1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (0, 2, 5, 7)


# ---- implicit terms in turns


def test_implicit_terms_take_turns_with_twice_the_weight():
    weights = {"ex_low": 0.5, "ex_high": 0.5, "im_full": 2.0, "im_high": 3.0, "balance": "fixed"}
    model, batch = distilled(tiny(), tiny(width=16), **weights, implicit="turns"), make_batch()
    every, counted = model(batch)[1], dict(weights, im_full=4.0, im_high=6.0)  # the first step measures all of them
    for turn, resting in ((0, "im_high"), (1, "im_full"), (2, "im_high")):
        model.turn = turn
        loss, items = model(batch)
        for name in TERMS:  # one that rests is reported as it was last seen
            torch.testing.assert_close(items[name], every[name], rtol=1e-4, atol=1e-6)
        total = sum(counted[name] * items[name] for name in TERMS if name != resting) * len(batch["img"])
        torch.testing.assert_close(loss[-1], total, rtol=1e-4, atol=1e-5)


def test_a_resting_amplifier_is_not_asked(monkeypatch):
    model, batch = distilled(tiny(), tiny(width=16), implicit="turns"), make_batch()
    model(batch)
    model.turn, high = 0, model._frozen.high
    model._frozen.high = None
    model(batch)
    model.turn, model._frozen.high, model._frozen.full = 1, high, None
    model(batch)
    with pytest.raises(AttributeError):
        model.measure_next = True  # a measurement needs both
        model(batch)


def test_a_single_implicit_term_works_every_step():
    model, batch = distilled(tiny(), tiny(width=16), **{**PAPER, "im_high": 0.0}, implicit="turns"), make_batch()
    model(batch)
    model.turn = 1
    loss, items = model(batch)
    expected = sum(items[name] for name in TERMS) * len(batch["img"])
    torch.testing.assert_close(loss[-1], expected, rtol=1e-4, atol=1e-6)


def test_a_teacher_of_whom_nothing_is_asked_is_not_asked(monkeypatch):
    model = distilled(tiny(), tiny(width=16, seed=1), **dict.fromkeys(TERMS, 0.0))
    monkeypatch.setattr(model._frozen, "teacher", None)
    batch = make_batch((2, 1))
    loss, items = model(batch)
    alone, _ = model.student_model.loss(batch, model.student_model(batch["img"]))
    assert loss.sum().item() == pytest.approx(alone.sum().item(), rel=1e-4)
    assert all(items[name] == 0 for name in TERMS) and model.balance.shares() == {"detection": 1.0}
