"""The implicit loss spread over the image sums to the loss itself, and lies where the maps differ."""

import pytest
import torch

from ds2d2_yolo.detectors.boxes import targets_of
from ds2d2_yolo.distill.amplifiers import Step, amplifier_for
from ds2d2_yolo.distill.gaps import gap_maps
from ds2d2_yolo.distill.levels import detect_head, tapped
from tests.helpers.distilling import make_batch, tiny, tiny_faster_rcnn, tiny_retinanet

YOLOS = {"dfl": {}, "plain boxes": {"reg_max": 1}, "end to end": {"end2end": True}}
SIZE = (128, 192)


def maps_of(model, batch):
    with torch.no_grad(), tapped(detect_head(model)) as maps:
        model.eval()(batch["img"])
    return list(maps)


def disturbed(maps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [m + 0.3 * m.std() * torch.randn(m.shape, generator=generator) for m in maps]


@pytest.mark.parametrize("kind", YOLOS)
@pytest.mark.parametrize("branch", ["one2many", "one2one"])
def test_of_a_yolo_head(kind, branch):
    model, batch = tiny(**YOLOS[kind]), make_batch(size=SIZE)
    maps = maps_of(model, batch)
    amplifier = amplifier_for(detect_head(model), [0, 1], branch, box_gain=6.0, classes=1)
    student, step = disturbed(maps), Step(batch)
    gaps = gap_maps(amplifier, student, maps, step)
    assert [g.shape for g in gaps] == [(2, *m.shape[2:]) for m in maps]
    assert all((g >= 0).all() for g in gaps)
    torch.testing.assert_close(sum(g.sum() for g in gaps), amplifier.loss(student, maps, step))


@pytest.mark.parametrize("published", [False, True])
def test_of_a_retinanet_head(published):
    model, batch = tiny_retinanet(), make_batch(size=SIZE)
    maps = maps_of(model, batch)[1:4]
    amplifier = amplifier_for(detect_head(model), [1, 2, 3], published=published, box_gain=0.5, classes=[1])
    student, step = disturbed(maps), Step(batch)
    gaps = gap_maps(amplifier, student, maps, step)
    assert [g.shape for g in gaps] == [(2, *m.shape[2:]) for m in maps]
    torch.testing.assert_close(sum(g.sum() for g in gaps), amplifier.loss(student, maps, step))


@pytest.mark.parametrize("published", [False, True])
def test_of_a_faster_rcnn_head(published):
    model, batch = tiny_faster_rcnn(), make_batch(size=SIZE)
    maps = maps_of(model, batch)
    amplifier = amplifier_for(detect_head(model), list(range(len(maps))), "one2many", published, 6.0, [1])
    boxes = [t["boxes"] for t in targets_of(batch)]
    whole = torch.tensor([[0.0, 0, 0, SIZE[1], SIZE[0]], [1, 250, 180, 260, 190]])  # the last one lies outside
    rows = torch.cat([*(torch.cat([torch.full((len(b), 1), i), b], 1) for i, b in enumerate(boxes)), whole])
    student, step = disturbed(maps), Step(batch, {"rois": rows})
    gaps = gap_maps(amplifier, student, maps, step)
    assert [g.shape for g in gaps] == [(2, *m.shape[2:]) for m in maps]
    torch.testing.assert_close(sum(g.sum() for g in gaps), amplifier.loss(student, maps, step))
    assert gap_maps(amplifier, student, maps, Step(batch, {"rois": rows[:0]}))[0].sum() == 0


def test_equal_maps_have_no_gap():
    model, batch = tiny(), make_batch()
    maps = maps_of(model, batch)
    gaps = gap_maps(amplifier_for(detect_head(model), [0, 1]), maps, maps, Step(batch))
    assert all(g.abs().max() < 1e-6 for g in gaps)


def test_a_gap_lies_where_the_maps_differ():
    model, batch = tiny(), make_batch(counts=(1,), size=256)
    maps = maps_of(model, batch)
    student = [m.clone() for m in maps]
    student[0][:, :, 5:8, 20:23] += 3
    fine, coarse = gap_maps(amplifier_for(detect_head(model), [0, 1]), student, maps, Step(batch))
    row, column = divmod(fine[0].argmax().item(), fine.shape[2])
    assert 4 <= row <= 8 and 19 <= column <= 23
    assert fine[0, 15:].max() < 1e-6 and coarse.max() < 1e-6


def test_a_regions_gap_lies_on_its_cells():
    model, batch = tiny_faster_rcnn(), make_batch(counts=(1,), size=128)
    maps = maps_of(model, batch)
    amplifier = amplifier_for(detect_head(model), list(range(len(maps))))
    rows = torch.tensor([[0.0, 16, 32, 39, 47]])  # small: pooled from the finest level, of stride 4
    fine, *others = gap_maps(amplifier, disturbed(maps), maps, Step(batch, {"rois": rows}))
    covered = torch.zeros(32, 32, dtype=torch.bool)
    covered[8:12, 4:10] = True
    assert (fine[0] > 0).equal(covered)
    assert all(g.sum() == 0 for g in others)


def test_anchors_in_between_count_for_boxes_and_not_for_classes():
    """RetinaNet's, whose overlap makes them neither an object's nor background."""
    sides = torch.tensor([52.0, 58, 64, 70, 80, 90])
    centres = torch.linspace(60, 110, 6)
    model, batch = tiny_retinanet(), make_batch(counts=(6,), size=SIZE)
    batch["bboxes"] = torch.stack([centres / SIZE[1], torch.full((6,), 0.5), sides / SIZE[1], sides / SIZE[0]], 1)
    maps = maps_of(model, batch)[1:4]
    amplifier, step = amplifier_for(detect_head(model), [1, 2, 3]), Step(batch)
    student = disturbed(maps)
    assert (amplifier._matched(student, step)[1] == -2).any()
    gaps = gap_maps(amplifier, student, maps, step)
    torch.testing.assert_close(sum(g.sum() for g in gaps), amplifier.loss(student, maps, step))


def test_a_region_lies_where_it_is_on_an_oblong_image():
    model, batch = tiny_faster_rcnn(), make_batch(counts=(1,), size=(64, 128))
    maps = maps_of(model, batch)
    amplifier = amplifier_for(detect_head(model), list(range(len(maps))))
    right_of_the_square = torch.tensor([[0.0, 96, 16, 119, 31]])
    fine, *_ = gap_maps(amplifier, disturbed(maps), maps, Step(batch, {"rois": right_of_the_square}))
    covered = torch.zeros(16, 32, dtype=torch.bool)
    covered[4:8, 24:30] = True
    assert (fine[0] > 0).equal(covered)


def test_a_region_lies_on_its_own_level_in_whatever_order_they_are_taught():
    model, batch = tiny_faster_rcnn(), make_batch(counts=(1,), size=128)
    maps, order = maps_of(model, batch), [3, 1, 0, 2]
    student = disturbed(maps)
    amplifier, step = (
        amplifier_for(detect_head(model), order),
        Step(batch, {"rois": torch.tensor([[0.0, 16, 32, 39, 47]])}),
    )
    gaps = gap_maps(amplifier, [student[i] for i in order], [maps[i] for i in order], step)
    assert [bool(gap.sum() > 0) for gap in gaps] == [False, False, True, False]
