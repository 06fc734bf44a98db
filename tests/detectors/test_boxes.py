import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from ds2d2_yolo.detectors import boxes as detector_boxes
from ds2d2_yolo.detectors.boxes import Anchors, assign, clipped, gather, targets_of, top_candidates
from ds2d2_yolo.errors import UserError

STRIDES = [8, 16, 32, 64, 128]


def anchors(strides=STRIDES, ratios=(0.5, 1.0, 2.0)):
    return Anchors(strides, [(4.0 * s, 6.0 * s) for s in strides], ratios)


def maps(*sizes):
    return [torch.zeros(1, 1, *s) for s in sizes]


def test_anchors_at_a_cell_have_the_known_sides():
    one = Anchors([8], [(32.0,)], (0.5, 1.0, 2.0))
    (boxes,) = one(maps((3, 4)))
    assert boxes.shape == (3 * 4 * 3, 4) and boxes.dtype == torch.float32
    # Row 2, column 3: centre (24, 16). Height by width 0.5: 22.63 by 45.25, halves rounded as in torchvision
    cell = boxes.reshape(3, 4, 3, 4)[2, 3]
    assert cell.tolist() == [[1, 5, 47, 27], [8, 0, 40, 32], [13, -7, 35, 39]]


def test_several_sizes_a_level():
    one = anchors([8])
    assert one.per_cell == 6
    (boxes,) = one(maps((1, 1)))
    # Ratios outside, sizes inside: torchvision's order, which its weights depend on
    assert (boxes[2:4, 2] - boxes[2:4, 0]).tolist() == [32, 48]


def test_coarse_levels_keep_their_stride_where_the_image_is_no_multiple():
    # 800 px: P7 has 7 cells of 128 px; torchvision's generator would say 800 // 7 = 114
    boxes = anchors()(maps(*[(-(-800 // s),) * 2 for s in STRIDES]))[-1].reshape(7, 7, 6, 4)
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2
    assert centres[:, 0, 0, 1].tolist() == [128 * i for i in range(7)]
    assert centres[0, :, 0, 0].tolist() == [128 * i for i in range(7)]


def test_a_subset_of_the_levels_has_the_same_anchors():
    every, sizes = anchors(), [(8, 6), (4, 3), (2, 2), (1, 1), (1, 1)]
    whole = every(maps(*sizes))
    some = every(maps(sizes[1], sizes[3]), [1, 3])
    assert len(some) == 2 and torch.equal(some[0], whole[1]) and torch.equal(some[1], whole[3])
    again = every(maps(*sizes))  # a subset leaves nothing behind
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))


@pytest.mark.parametrize("count", [4, 6])
def test_as_many_maps_as_levels(count):
    with pytest.raises(UserError, match=f"anchors for 5 levels, and the FPN gives it {count} maps"):
        anchors()(maps(*[(2, 2)] * count))


def a_batch(boxes, index, classes, images=2, size=(100, 200)):
    values = {"bboxes": torch.tensor(boxes).reshape(-1, 4), "batch_idx": torch.tensor(index).float()}
    return {**values, "cls": torch.tensor(classes).float()[:, None], "img": torch.zeros(images, 3, *size)}


def test_anchors_are_made_once_for_maps_of_one_size(monkeypatch):
    made, own = [], Anchors._made
    monkeypatch.setattr(Anchors, "_made", lambda *args: made.append(1) or own(*args))
    kept = Anchors([8, 16], [(8.0,), (16.0,)], (1.0,))
    for size, levels in ((4, None), (4, None), (6, None), (4, [1]), (4, [1]), (4, None)):
        maps = [torch.zeros(1, 1, size, 2 * size)] * (1 if levels else 2)
        fresh = Anchors([8, 16], [(8.0,), (16.0,)], (1.0,))
        for ours, theirs in zip(kept(maps, levels), fresh(maps, levels), strict=True):
            assert torch.equal(ours, theirs)
    assert len(made) == 4 + 6  # those of `fresh` are new
    assert "_kept" in vars(kept) and "_kept" not in vars(pickle.loads(pickle.dumps(kept)))


@settings(max_examples=60)
@given(
    boxes=st.lists(st.tuples(*[st.integers(0, 12)] * 2, *[st.integers(1, 9)] * 2), min_size=1, max_size=12),
    high=st.sampled_from([0.5, 0.7]),
    low_quality=st.booleans(),
    pairs=st.sampled_from([1, 200, 500]),
)
def test_assigned_in_parts_or_at_once_it_is_torchvisions(boxes, high, low_quality, pairs):
    """On whole numbers, so that overlaps are equal, and boxes as well."""
    boxes = torch.tensor(boxes, dtype=torch.float32) * 4
    boxes[:, 2:] += boxes[:, :2]
    places = torch.cartesian_prod(torch.arange(0, 56, 8.0), torch.arange(0, 56, 8.0))
    anchors = torch.cat([torch.cat([places, places + size], 1) for size in (8, 16)])
    matcher = Matcher(high, 0.3, allow_low_quality_matches=low_quality)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector_boxes, "_PAIRS", pairs)
        found = assign(matcher, boxes, anchors)
    assert torch.equal(found, matcher(box_iou(boxes, anchors)))


def test_what_is_held_of_a_crowd_is_bounded(monkeypatch):
    """3,000 objects and 49,104 anchors: at once the overlaps alone would be 589 MB."""
    sizes, real = [], detector_boxes.box_iou
    monkeypatch.setattr(detector_boxes, "box_iou", lambda a, b: sizes.append(len(a) * len(b)) or real(a, b))
    made = torch.cat(anchors()(maps(*[(512 // s,) * 2 for s in STRIDES])))
    corners = torch.rand(3000, 2) * 500
    found = assign(Matcher(0.5, 0.4, True), torch.cat([corners, corners + 20], 1), made)
    assert max(sizes) <= detector_boxes._PAIRS and sum(sizes) == 3000 * len(made)
    assert found.max() > 2000


def test_targets_are_pixel_boxes_an_image():
    batch = a_batch([[0.5, 0.5, 0.2, 0.4], [0.1, 0.2, 0.1, 0.1], [0.25, 0.75, 0.5, 0.5]], [2, 0, 2], [3, 1, 0], 3)
    first, second, third = targets_of(batch)
    torch.testing.assert_close(first["boxes"], torch.tensor([[10.0, 15.0, 30.0, 25.0]]))
    torch.testing.assert_close(third["boxes"], torch.tensor([[80.0, 30.0, 120.0, 70.0], [0.0, 50.0, 100.0, 100.0]]))
    assert first["labels"].tolist() == [1] and third["labels"].tolist() == [3, 0]
    assert second["boxes"].shape == (0, 4) and second["labels"].shape == (0,)
    assert first["boxes"].dtype == torch.float32 and first["labels"].dtype == torch.int64
    assert [t["labels"].tolist() for t in targets_of(batch, background=1)] == [[2], [], [4, 1]]


def test_boxes_without_area_are_dropped():
    boxes = [[0.5, 0.5, 0.0, 0.2], [0.5, 0.5, 0.2, 0.0], [0.5, 0.5, 0.2, 0.2], [0.5, 0.5, -0.1, 0.2]]
    (one,) = targets_of(a_batch(boxes, [0] * 4, [0, 1, 2, 3], images=1))
    assert one["labels"].tolist() == [2] and one["boxes"].shape == (1, 4)


@pytest.mark.parametrize("shape", [(0, 4), (0,)])
def test_a_batch_without_boxes(shape):
    batch = a_batch([], [], []) | {"bboxes": torch.zeros(shape)}
    found = targets_of(batch)
    assert [tuple(t["boxes"].shape) for t in found] == [(0, 4)] * 2
    assert [tuple(t["labels"].shape) for t in found] == [(0,)] * 2


def test_targets_of_half_precision_boxes_are_computed_in_float32():
    half = a_batch([[0.517, 0.533, 0.211, 0.407]], [0], [1], images=1, size=(1024, 1024))
    half["bboxes"] = half["bboxes"].half()
    (one,), (expected,) = targets_of(half), targets_of(half | {"bboxes": half["bboxes"].float()})
    assert one["boxes"].dtype == torch.float32 and torch.equal(one["boxes"], expected["boxes"])


def test_top_candidates_takes_what_there_is():
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.3, 0.2, 0.8]])
    best, places = top_candidates(scores, 2)
    assert places.tolist() == [[1, 2], [2, 0]] and torch.equal(best, scores.gather(1, places))
    assert top_candidates(scores, 10)[1].tolist() == [[1, 2, 0], [2, 0, 1]]


def test_gather_and_clip():
    values, places = torch.arange(12.0).reshape(2, 3, 2), torch.tensor([[2, 0], [1, 1]])
    assert gather(values, places).tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]
    assert gather(values[..., 0], places).tolist() == [[4, 0], [8, 8]]
    assert clipped(torch.tensor([[-5.0, 3.0, 50.0, 70.0]]), 60, 40).tolist() == [[0, 3, 40, 60]]


def test_objects_of_less_than_a_pixel_are_kept():
    batch = {"img": torch.zeros(1, 3, 64, 64), "bboxes": torch.tensor([[0.5, 0.5, 0.01, 0.01]])}
    (one,) = targets_of({**batch, "cls": torch.zeros(1, 1), "batch_idx": torch.zeros(1)})
    assert len(one["boxes"]) == 1
