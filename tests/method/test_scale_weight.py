import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ds2d2_yolo.method.scale_weight import density_independent_scale_weight
from tests.method import slow_versions as slow

coordinate = st.floats(-50, 400, width=32)
box_lists = st.lists(st.lists(st.tuples(*[coordinate] * 4), max_size=12), min_size=1, max_size=3)
image_sizes = st.tuples(st.integers(1, 300), st.integers(1, 300))
map_sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))


def weight_map(boxes_by_image, image_hw, map_hw, order=None):
    boxes = torch.tensor([box for boxes in boxes_by_image for box in boxes]).view(-1, 4)
    index = torch.tensor([image for image, boxes in enumerate(boxes_by_image) for _ in boxes], dtype=torch.long)
    if order is not None:
        boxes, index = boxes[order], index[order]
    return density_independent_scale_weight(boxes, index, len(boxes_by_image), image_hw, map_hw)


@given(box_lists, image_sizes, map_sizes)
@settings(max_examples=150, deadline=None)
def test_every_box_adds_a_mass_of_one_and_nothing_falls_below_one(boxes, image_hw, map_hw):
    weight = weight_map(boxes, image_hw, map_hw)
    assert weight.shape == (len(boxes), 1, *map_hw)
    assert weight.dtype == torch.float32
    assert torch.isfinite(weight).all()
    assert weight.min() >= 1
    mass = (weight.double() - 1).sum(dim=(1, 2, 3))
    np.testing.assert_allclose(mass, [len(b) for b in boxes], atol=1e-4)


@given(box_lists, st.tuples(st.just(256), st.just(320)), map_sizes)
@settings(max_examples=100, deadline=None)
def test_equals_boxes_painted_one_by_one(boxes, image_hw, map_hw):
    # On a grid of 1/8 px float32 and float64 agree on which cell a coordinate falls into.
    boxes = [[tuple(round(8 * v) / 8 for v in box) for box in image] for image in boxes]
    expected = slow.scale_weight(boxes, image_hw, map_hw)
    np.testing.assert_allclose(weight_map(boxes, image_hw, map_hw)[:, 0], expected, rtol=1e-6)


@given(box_lists, image_sizes, map_sizes, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_order_of_the_boxes_does_not_matter(boxes, image_hw, map_hw, random):
    order = list(range(sum(len(b) for b in boxes)))
    random.shuffle(order)
    shuffled = weight_map(boxes, image_hw, map_hw, torch.tensor(order, dtype=torch.long))
    assert torch.equal(shuffled, weight_map(boxes, image_hw, map_hw))


@given(box_lists, image_sizes, map_sizes)
@settings(max_examples=60, deadline=None)
def test_an_image_does_not_see_the_others_of_its_batch(boxes, image_hw, map_hw):
    together = weight_map(boxes, image_hw, map_hw)
    for image, alone in enumerate(boxes):
        assert torch.equal(together[image : image + 1], weight_map([alone], image_hw, map_hw))


def test_a_known_box():
    # 64 px on 8 cells: cells of 8 px. x: floor(9/8)=1 .. ceil(20/8)=3, y: floor(16/8)=2 .. ceil(17/8)=3; 3 x 2 cells.
    weight = weight_map([[(9.0, 16.0, 20.0, 17.0)]], (64, 64), (8, 8))[0, 0]
    expected = torch.ones(8, 8)
    expected[2:4, 1:4] += 1 / 6
    torch.testing.assert_close(weight, expected)


def test_overlapping_boxes_add():
    box = (0.0, 0.0, 64.0, 64.0)
    torch.testing.assert_close(weight_map([[box] * 5], (64, 64), (4, 4)), torch.full((1, 1, 4, 4), 1 + 5 / 16))


@pytest.mark.parametrize(
    ("box", "cell"),
    [
        ((20.0, 20.0, 20.0, 20.0), (2, 2)),  # no extent, off the grid: floor 2 .. ceil 3
        ((-90.0, -90.0, -80.0, -80.0), (0, 0)),  # above and left of the image
        ((500.0, 10.0, 600.0, 12.0), (1, 7)),  # right of the image
        ((float("-inf"), 0.0, float("inf"), 64.0), (0, 0)),
        ((30.0, 30.0, 10.0, 10.0), (3, 3)),  # corners swapped
    ],
)
def test_boxes_that_are_none_add_their_mass_at_the_nearest_cells(box, cell):
    weight = weight_map([[box]], (64, 64), (8, 8))[0, 0]
    assert weight.sum().item() == pytest.approx(65, abs=1e-4)
    assert weight[cell] > 1


def test_a_box_that_is_not_a_number_adds_nothing():
    weight = weight_map([[(float("nan"), 0.0, 8.0, 8.0), (0.0, 0.0, 64.0, 64.0)]], (64, 64), (8, 8))
    torch.testing.assert_close(weight, torch.full((1, 1, 8, 8), 1 + 1 / 64))


def test_no_boxes_give_ones():
    weight = density_independent_scale_weight(torch.zeros(0, 4), torch.zeros(0), 3, (64, 96), (5, 7))
    assert torch.equal(weight, torch.ones(3, 1, 5, 7))


def test_three_thousand_boxes_leave_no_trace_outside_themselves():
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(3000, 2, generator=generator) * 600
    boxes = torch.cat((corner, corner + torch.rand(3000, 2, generator=generator) * 40), dim=1)
    index = torch.randint(0, 2, (3000,), generator=generator)
    weight = density_independent_scale_weight(boxes, index.float(), 3, (1024, 1024), (256, 256))
    expected = slow.scale_weight([boxes[index == i].numpy() for i in range(3)], (1024, 1024), (256, 256))
    np.testing.assert_allclose(weight[:, 0], expected, rtol=1e-6)
    assert torch.equal(weight[:, :, 170:], torch.ones_like(weight[:, :, 170:]))
    assert torch.equal(weight[2], torch.ones_like(weight[2]))


def test_carries_no_gradient():
    boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0]], requires_grad=True)
    assert not density_independent_scale_weight(boxes, torch.zeros(1), 1, (64, 64), (8, 8)).requires_grad


def test_the_same_under_autocast_and_for_half_precision_boxes():
    boxes, index = torch.tensor([[8.0, 16.0, 24.0, 40.0]]), torch.zeros(1)
    expected = density_independent_scale_weight(boxes, index, 1, (64, 64), (8, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(density_independent_scale_weight(boxes, index, 1, (64, 64), (8, 8)), expected)
    assert torch.equal(density_independent_scale_weight(boxes.half(), index, 1, (64, 64), (8, 8)), expected)


def test_runs_under_deterministic_algorithms():
    boxes = torch.rand(50, 4) * 64
    expected = density_independent_scale_weight(boxes, torch.zeros(50), 1, (64, 64), (8, 8))
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(density_independent_scale_weight(boxes, torch.zeros(50), 1, (64, 64), (8, 8)), expected)
    finally:
        torch.use_deterministic_algorithms(False)


def test_errors_name_the_shapes():
    with pytest.raises(ValueError, match=r"\(2, 4\) and \(3,\)"):
        density_independent_scale_weight(torch.zeros(2, 4), torch.zeros(3), 1, (64, 64), (8, 8))
    with pytest.raises(ValueError, match=r"\(2, 4\) and \(2, 1\)"):
        density_independent_scale_weight(torch.zeros(2, 4), torch.zeros(2, 1), 1, (64, 64), (8, 8))
    with pytest.raises(ValueError, match="image 0x64 and map 8x8"):
        density_independent_scale_weight(torch.zeros(2, 4), torch.zeros(2), 1, (0, 64), (8, 8))
