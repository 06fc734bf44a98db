import math

import pytest
import torch

from ds2d2_yolo.distill.amplifiers import Step
from ds2d2_yolo.distill.balance import LIMIT, Balance
from tests.helpers.distilling import distilled, loss_at_neck, make_batch, norm_of_gradient, tiny

WEIGHTS = {"ex_low": 0.2, "ex_high": 0.5, "im_full": 2.0, "im_high": 0.0}


@pytest.fixture
def maps():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, s, s, generator=generator, requires_grad=True) for s in (4, 2)]


def graph(maps, scales=(3.0, 0.01, 500.0, 7.0)):
    """A detection loss and terms whose gradients at the maps are of very different size."""
    detection, *terms = (scale * sum((m * m * (i + 1)).sum() for m in maps) for i, scale in enumerate(scales))
    return detection, dict(zip(("ex_low", "ex_high", "im_full"), terms, strict=True))


def linear(maps, slope):
    """A loss whose gradient at the first map has exactly the norm `slope`."""
    return maps[0].flatten()[0] * slope


# ---- the size of a term


def test_a_weight_is_the_gradient_relative_to_detections(maps):
    balance = Balance(WEIGHTS)
    detection, terms = graph(maps)
    balance.measure(detection, terms, maps)
    reference = norm_of_gradient(detection, maps)
    for name, term in terms.items():
        alone = norm_of_gradient(balance.total({name: term}), maps)
        assert alone / reference == pytest.approx(WEIGHTS[name], rel=1e-5)


def test_the_total_is_the_weighted_sum(maps):
    balance = Balance(WEIGHTS)
    detection, terms = graph(maps)
    balance.measure(detection, terms, maps)
    expected = sum(WEIGHTS[name] * balance.scales[name] * term.item() for name, term in terms.items())
    assert balance.total(terms).item() == pytest.approx(expected, rel=1e-5)
    assert balance.total({}) == 0


@pytest.mark.parametrize("end2end, reg_max", [(False, 16), (True, 1)])
def test_on_a_real_step(end2end, reg_max):
    torch.manual_seed(0)
    student = tiny((8, 16), end2end=end2end, reg_max=reg_max)
    model = distilled(student, tiny((8, 16), width=16, seed=1), im_high=0.7)
    batch = make_batch((3, 2))
    loss, _, maps = loss_at_neck(model, batch)
    reference = norm_of_gradient(loss[:-1].sum(), maps)
    terms = model.terms(maps, model._frozen.teacher(batch["img"]), Step(batch))
    assert list(terms) == ["ex_low", "ex_high", "im_full", "im_high"]
    for name, term in terms.items():
        pull = norm_of_gradient(model.balance.total({name: term}), maps) * len(batch["img"])
        assert pull / reference == pytest.approx(getattr(model.settings, name), rel=1e-3), name


def test_fixed_weights_multiply_the_term(maps):
    balance = Balance(WEIGHTS, mode="fixed")
    detection, terms = graph(maps)
    expected = sum(WEIGHTS[name] * term.item() for name, term in terms.items())
    assert balance.total(terms).item() == pytest.approx(expected, rel=1e-6)
    balance.measure(detection, terms, maps)  # for the log alone
    assert balance.total(terms).item() == pytest.approx(expected, rel=1e-6)
    assert sum(balance.shares().values()) == pytest.approx(1)


def test_without_a_measurement_a_term_has_no_weight(maps):
    balance = Balance(WEIGHTS)
    _, terms = graph(maps)
    assert balance.total(terms).item() == 0


def test_later_measurements_move_the_scale_half_way(maps):
    """Half way between orders of magnitude, and by a factor of two at the most."""
    balance = Balance({"ex_low": 1.0})
    measured = ((2.0, 5.0), (0.8, 7.90569), (0.1, 15.8114), (20.0, 7.905694))
    for slope, expected in measured:
        balance.measure(linear(maps, 10.0), {"ex_low": linear(maps, slope)}, maps)
        assert balance.scales["ex_low"] == pytest.approx(expected)


def test_a_term_that_vanishes_stays_small(maps):
    balance = Balance({"ex_low": 1.0})
    balance.measure(linear(maps, 10.0), {"ex_low": linear(maps, 1.0)}, maps)
    for _ in range(30):
        balance.measure(linear(maps, 10.0), {"ex_low": linear(maps, 1e-5)}, maps)
    assert balance.scales["ex_low"] == pytest.approx(10 * LIMIT)
    balance.measure(linear(maps, 10.0), {"ex_low": linear(maps, 1.0)}, maps)  # and recovers
    assert balance.scales["ex_low"] == pytest.approx(5 * LIMIT)


@pytest.mark.parametrize("after", [0, 3])
def test_what_is_no_more_than_rounding_is_not_measured(maps, after):
    """Of a student that starts as its teacher: its weight would be a hundred million."""
    balance = Balance({"ex_low": 1.0})
    for slope in [2.0] * after + [1e-12]:
        balance.measure(linear(maps, 10.0), {"ex_low": linear(maps, slope)}, maps)
    assert balance.scales == ({"ex_low": 5.0} if after else {})


def test_batches_that_labels_pull_harder_at_hardly_change_the_weight(maps):
    balance = Balance({"ex_low": 1.0})
    for step in range(40):
        balance.measure(linear(maps, 400.0 if step % 10 == 5 else 10.0), {"ex_low": linear(maps, 1.0)}, maps)
        assert 10 <= balance.scales["ex_low"] <= 20.1
    assert balance.scales["ex_low"] == pytest.approx(10, rel=0.1)


def test_a_batch_without_objects_is_not_measured():
    torch.manual_seed(0)
    model = distilled(tiny((8, 16)), tiny((8, 16), width=16, seed=1))
    model(make_batch((0, 0)))
    assert model.measure_next and not model.balance.scales  # nor is it distilled: no weight is known yet
    model(make_batch((3, 0)))
    scales = dict(model.balance.scales)
    assert not model.measure_next and scales.keys() == set(model.balance.active)
    model.measure_next = True
    loss, items = model(make_batch((0, 0)))
    assert model.measure_next and model.balance.scales == scales
    assert loss[-1] > 0 and items["ex_low"] > 0  # with the weights of before
    model(make_batch((1, 0)))
    assert not model.measure_next


def test_terms_that_are_off_are_not_active():
    assert Balance(WEIGHTS).active == ["ex_low", "ex_high", "im_full"]
    assert Balance(dict.fromkeys(WEIGHTS, 0.0)).active == []


# ---- the schedule


@pytest.mark.parametrize(
    "epoch, expected", [(0, 0.0), (0.5, 0.25), (1, 0.5), (2, 1.0), (5, 1.0), (10, 1.0)], ids=lambda v: str(v)
)
def test_warmup_is_linear(epoch, expected):
    balance = Balance({"ex_low": 3.0}, "fixed", warmup=2.0)
    balance.set_progress(epoch, 10)
    assert balance.multiplier("ex_low") == pytest.approx(3 * expected)


@pytest.mark.parametrize(
    "epoch, expected", [(0, 1.0), (2.5, 0.1 + 0.45 * (1 + math.sqrt(0.5))), (5, 0.55), (10, 0.1), (12, 0.1)]
)
def test_decay_follows_a_cosine(epoch, expected):
    balance = Balance({"ex_low": 3.0}, "fixed", final=0.1)
    balance.set_progress(epoch, 10)
    assert balance.multiplier("ex_low") == pytest.approx(3 * expected)


def test_warmup_and_decay_multiply(maps):
    balance = Balance({"ex_low": 2.0}, "gradient", warmup=10.0, final=0.0)
    balance.measure(linear(maps, 10.0), {"ex_low": linear(maps, 4.0)}, maps)
    balance.set_progress(5, 10)
    assert balance.multiplier("ex_low") == pytest.approx(2.0 * 2.5 * 0.5 * 0.5)
    balance.set_progress(0, 0)  # a run of no epochs
    assert math.isfinite(balance.factor)


# ---- shares


def test_shares_are_those_of_the_weighted_gradients(maps):
    balance = Balance({"ex_low": 0.5, "im_full": 1.5})
    balance.measure(linear(maps, 8.0), {"ex_low": linear(maps, 0.1), "im_full": linear(maps, 400.0)}, maps)
    expected = {"detection": 1 / 3, "ex_low": 0.5 / 3, "im_full": 0.5}
    assert balance.shares() == pytest.approx(expected) and balance.room() == pytest.approx(7**0.5)  # 1 + 2 + 4
    balance.set_progress(0, 10)
    balance.warmup = 1.0
    balance.set_progress(0, 10)
    assert balance.shares() == pytest.approx({"detection": 1, "ex_low": 0, "im_full": 0})
    assert balance.room() == pytest.approx(1)


def test_room_is_bounded_whatever_a_batch_says(maps):
    """A batch whose labels hardly pull is no reason to clip nothing."""
    for mode, expected in (("gradient", 1 + 2 + 4), ("fixed", 1 + 4 + 16)):
        balance = Balance({"ex_low": 0.5, "im_full": 1.5}, mode)
        for labels in (8.0, 1e-4):
            balance.measure(linear(maps, labels), {"ex_low": linear(maps, 1.0), "im_full": linear(maps, 40.0)}, maps)
        assert balance.room() == pytest.approx(expected**0.5)


def test_room_of_fixed_weights_is_by_what_was_measured(maps):
    balance = Balance({"ex_low": 0.5, "im_full": 1.5}, "fixed")
    balance.measure(linear(maps, 8.0), {"ex_low": linear(maps, 4.0), "im_full": linear(maps, 4.0)}, maps)
    assert balance.room() == pytest.approx(3**0.5)  # terms pull as hard as the labels: 1 + 1 + 1


def test_there_are_no_shares_before_a_measurement():
    assert Balance(WEIGHTS).shares() == {} and Balance(WEIGHTS).room() == 1


# ---- what goes wrong


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 0.0])
@pytest.mark.parametrize("who", ["detection", "term"])
def test_gradients_that_are_no_numbers_leave_things_finite(maps, bad, who):
    balance = Balance({"ex_low": 1.0, "ex_high": 1.0})

    def measure(detection, term):
        terms = {"ex_low": linear(maps, term), "ex_high": linear(maps, 1.0)}
        balance.measure(linear(maps, detection), terms, maps)

    def assert_finite():
        values = [*balance.shares().values(), *balance.scales.values(), balance.total({"ex_low": torch.ones(())})]
        values.append(balance.room())
        assert all(math.isfinite(v) for v in values)

    odd = (bad, 2.0) if who == "detection" else (10.0, bad)
    measure(*odd)  # as the very first
    assert_finite()
    measure(10.0, 2.0)
    assert balance.scales["ex_low"] == pytest.approx(5.0)  # nothing is left of it
    measure(*odd)
    assert_finite()
    assert balance.scales["ex_low"] == pytest.approx(5.0)


def test_maps_and_losses_without_gradient(maps):
    balance = Balance({"ex_low": 1.0})
    balance.measure(linear(maps, 10.0), {"ex_low": torch.tensor(3.0)}, maps)
    assert balance.scales == {}
    frozen = [m.detach() for m in maps]  # all layers below the head are frozen
    balance.measure(linear(maps, 10.0), {"ex_low": linear(maps, 1.0)}, frozen)
    assert balance.scales == {}
    balance.measure(linear(maps, 10.0), {"ex_low": linear(maps, 2.0)}, [maps[0], frozen[1]])
    assert balance.scales == {"ex_low": pytest.approx(5.0)}


def test_measuring_leaves_the_graph_and_the_gradients_alone(maps):
    detection, terms = graph(maps)
    Balance(WEIGHTS).measure(detection, terms, maps)
    assert all(m.grad is None for m in maps)
    (detection + sum(terms.values())).backward()  # the graph is still there
    assert all(m.grad.isfinite().all() for m in maps)


def test_small_gradients_of_half_precision_maps_are_measured():
    leaf = torch.ones(4, requires_grad=True)
    half = leaf.half()
    balance = Balance({"ex_low": 1.0})
    tiny_slope = 2.0**-26  # below float16's smallest number, 2^-24
    balance.measure(half.float().sum(), {"ex_low": half.float().sum() * tiny_slope}, [half])
    assert balance.scales["ex_low"] == pytest.approx(2.0**26, rel=1e-3)


def test_a_resumed_balance_is_capped_as_the_one_before(maps):
    """By its first measurement, which is no more what its latest is."""
    balance, resumed = (Balance({"ex_low": 1.0}) for _ in range(2))
    for slope in (1.0, 0.1):
        balance.measure(linear(maps, 10.0), {"ex_low": linear(maps, slope)}, maps)
    resumed.restore(balance.state())
    assert resumed.state() == balance.state()
