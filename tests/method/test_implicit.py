import math

import numpy as np
import pytest
import torch

from ds2d2_yolo.method.implicit import confidence_mass, dense_implicit_loss, match_statistics, roi_implicit_loss
from tests.method import slow_versions as slow


def dense_inputs(seed=0, batch=2, anchors=12, classes=3, dtype=torch.float64):
    """(student logits, student boxes, teacher logits, teacher boxes)."""
    generator = torch.Generator().manual_seed(seed)
    sides = []
    for _ in range(2):
        sides.append(torch.randn(batch, anchors, classes, dtype=dtype, generator=generator) * 2)
        corner = torch.rand(batch, anchors, 2, dtype=dtype, generator=generator) * 30
        size = 5 + torch.rand(batch, anchors, 2, dtype=dtype, generator=generator) * 30
        sides.append(torch.cat((corner, corner + size), dim=-1))
    return sides


def roi_inputs(seed=0, regions=15, classes=4, dtype=torch.float64):
    """(student logits, teacher logits, student deltas, teacher deltas)."""
    generator = torch.Generator().manual_seed(seed)
    widths = (classes + 1, classes + 1, 4 * classes, 4 * classes)
    return [torch.randn(regions, width, dtype=dtype, generator=generator) * 2 for width in widths]


def values(terms):
    return tuple(t.item() for t in terms)


def arrays(tensors):
    return [t.numpy() for t in tensors]


def one_pair(student_box, teacher_box):
    """The box term of one anchor of weight 1."""
    logits = torch.zeros(1, 1, 1)
    boxes = torch.tensor([[student_box]]).requires_grad_(), torch.tensor([[teacher_box]])
    _, loss = dense_implicit_loss(logits, boxes[0], logits, boxes[1], 1, box_weight=torch.ones(1, 1))
    loss.backward()
    return loss.item(), boxes[0].grad


# --- dense heads ---


def test_dense_equals_the_slow_version():
    inputs = dense_inputs()
    assert values(dense_implicit_loss(*inputs, 7.0)) == pytest.approx(slow.dense_implicit(*arrays(inputs), 7), rel=1e-9)


def test_dense_masks_and_weights_equal_the_slow_version():
    inputs, generator = dense_inputs(), torch.Generator().manual_seed(9)
    u = (torch.rand(2, 12, generator=generator) > 0.4).double()
    v = torch.rand(2, 12, dtype=torch.float64, generator=generator)
    for mask, weight in ((u, None), (u, v), (None, v)):
        expected = slow.dense_implicit(*arrays(inputs), 3, *(None if x is None else x.numpy() for x in (mask, weight)))
        found = dense_implicit_loss(*inputs, torch.tensor(3.0), cls_mask=mask, box_weight=weight)
        assert values(found) == pytest.approx(expected, rel=1e-9)


def test_a_boolean_mask_is_a_mask():
    inputs, keep = dense_inputs(), torch.arange(24).view(2, 12) % 3 > 0
    assert values(dense_implicit_loss(*inputs, 1, keep)) == values(dense_implicit_loss(*inputs, 1, keep.double()))


def test_one_logit_by_hand():
    logits, box = torch.tensor([[[0.0]]]), torch.tensor([[[0.0, 0.0, 4.0, 4.0]]])
    target = torch.tensor([[[math.log(3.0)]]])  # q = 3/4
    moved = torch.tensor([[[2.0, 0.0, 6.0, 4.0]]])
    cls, distance = dense_implicit_loss(logits, box, target, moved, 1)
    assert cls.item() == pytest.approx(0.25 * math.log(2))
    assert distance.item() == pytest.approx(0.75 * (1 - (8 / 24 - 0)))  # the hull of the two is their union


def test_equal_predictions_cost_nothing():
    z, b, _, _ = dense_inputs()
    assert values(dense_implicit_loss(z, b, z, b, 1)) == pytest.approx((0, 0), abs=1e-12)


def test_dense_gradients_also_through_the_quality_factor():
    z, b, z_t, b_t = dense_inputs(anchors=5)
    z.requires_grad_(), b.requires_grad_()
    mask = torch.tensor([[1.0, 0, 1, 1, 1]] * 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z, b: dense_implicit_loss(z, b, z_t, b_t, 2.0, mask), (z, b))
    gradient = torch.autograd.grad(dense_implicit_loss(z, b, z_t, b_t, 1)[0], z)[0]
    factor = (z.sigmoid() - z_t.sigmoid()).abs().detach()
    without_factor = torch.nn.functional.binary_cross_entropy_with_logits(z, z_t.sigmoid(), weight=factor)
    assert not torch.allclose(gradient, torch.autograd.grad(without_factor * z.numel(), z)[0])


def test_the_dense_targets_carry_no_gradient():
    inputs = [x.requires_grad_() for x in dense_inputs()]
    mask, weight, n = (torch.ones(shape, requires_grad=True) for shape in ((2, 12), (2, 12), ()))
    sum(dense_implicit_loss(*inputs, n, mask, weight)).backward()
    assert [x.grad is not None for x in (*inputs, mask, weight, n)] == [True, True, *[False] * 5]


def test_a_normalizer_below_one_counts_as_one():
    inputs = dense_inputs()
    for n in (0, 0.25, torch.tensor(0.0), torch.tensor(1)):
        assert values(dense_implicit_loss(*inputs, n)) == values(dense_implicit_loss(*inputs, 1.0))


def test_no_anchors_cost_nothing_and_can_be_differentiated():
    inputs = [x.requires_grad_() for x in dense_inputs(anchors=0)]
    terms = dense_implicit_loss(*inputs, confidence_mass(inputs[2]))
    assert values(terms) == (0, 0)
    sum(terms).backward()
    assert inputs[0].grad.shape == (2, 0, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dense_losses_are_float32_under_autocast_and_in_half_precision(dtype):
    inputs = [x.to(dtype) for x in dense_inputs()]
    expected = dense_implicit_loss(*(x.float() for x in inputs), 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = dense_implicit_loss(*inputs, 5)
    assert [t.dtype for t in found] == [torch.float32] * 2
    assert values(found) == values(expected)


@pytest.mark.parametrize("anchors", [0, 3000])
@pytest.mark.parametrize("level", [-40.0, -9.0, 0.0, 9.0, 40.0])
def test_bounded_from_background_to_crowd_and_from_doubt_to_certainty(anchors, level):
    z, b, z_t, b_t = dense_inputs(anchors=3000, dtype=torch.float32)
    z_t = torch.full_like(z_t, -9.0)  # the teacher sees background ...
    z_t[:, :anchors] = level  # ... but for these anchors
    z = (z - 6).requires_grad_()  # a student that has learned that most is background
    b.requires_grad_()
    cls, box = dense_implicit_loss(z, b, z_t, b_t, confidence_mass(z_t))
    (cls + box).backward()
    assert 0 <= cls < 100
    assert 0 <= box <= 2  # a mean of 1 - GIoU under the weights that normalise it
    assert torch.isfinite(z.grad).all()
    assert torch.isfinite(b.grad).all()


def test_confidence_mass_is_a_sum_with_a_floor():
    z = dense_inputs()[2]
    assert confidence_mass(z).item() == pytest.approx(slow.sigmoid(z.numpy().max(axis=-1)).sum())
    assert confidence_mass(torch.full((4, 100, 3), -20.0)).item() == 4
    assert confidence_mass(torch.zeros(0, 100, 3)).item() == 1
    assert not confidence_mass(z.requires_grad_()).requires_grad
    assert confidence_mass(z.bfloat16()).dtype == torch.float32


# --- boxes ---


def test_giou_of_known_pairs():
    assert one_pair((0.0, 0.0, 2.0, 2.0), (0.0, 0.0, 2.0, 2.0))[0] == pytest.approx(0)
    assert one_pair((0.0, 0.0, 1.0, 1.0), (2.0, 0.0, 3.0, 1.0))[0] == pytest.approx(1 + 1 / 3)  # apart: hull 3, union 2
    assert one_pair((0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 4.0, 4.0))[0] == pytest.approx(15 / 16)  # inside
    far = one_pair((0.0, 0.0, 1.0, 1.0), (1000.0, 1000.0, 1001.0, 1001.0))[0]
    assert far == pytest.approx(2, abs=1e-4)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ((5.0, 5.0, 5.0, 5.0), (5.0, 5.0, 5.0, 5.0)),  # two points
        ((5.0, 5.0, 5.0, 5.0), (0.0, 0.0, 9.0, 9.0)),
        ((5.0, 0.0, 5.0, 9.0), (5.0, 0.0, 5.0, 9.0)),  # two lines
        ((0.0, 0.0, 9.0, 9.0), (20.0, 20.0, 20.0, 20.0)),
        ((9.0, 9.0, 0.0, 0.0), (0.0, 0.0, 9.0, 9.0)),  # inverted both ways: must not pass for a box
        ((9.0, 0.0, 0.0, 9.0), (0.0, 0.0, 9.0, 9.0)),
        ((-1e5, -1e5, 1e5, 1e5), (0.0, 0.0, 1.0, 1.0)),
        ((1.0, 1.0, 1.001, 1.001), (1.0, 1.0, 1.001, 1.001)),
    ],
)
def test_degenerate_boxes_stay_bounded(student, teacher):
    loss, gradient = one_pair(student, teacher)
    assert 0 <= loss <= 2
    assert torch.isfinite(gradient).all()


def test_dense_errors_name_the_shapes():
    z, b, z_t, b_t = dense_inputs()
    with pytest.raises(ValueError, match=r"logits of student \(2, 12, 3\) and teacher \(2, 12, 2\)"):
        dense_implicit_loss(z, b, z_t[..., :2], b_t, 1)
    with pytest.raises(ValueError, match=r"boxes of student \(2, 12, 4\) and teacher \(2, 11, 4\)"):
        dense_implicit_loss(z, b, z_t, b_t[:, :11], 1)
    with pytest.raises(ValueError, match=r"student_boxes is not for the anchors \(2, 12\): \(2, 11\)"):
        dense_implicit_loss(z, b[:, :11], z_t, b_t[:, :11], 1)
    with pytest.raises(ValueError, match=r"cls_mask is not for the anchors \(2, 12\): \(12,\)"):
        dense_implicit_loss(z, b, z_t, b_t, 1, cls_mask=torch.ones(12))
    with pytest.raises(ValueError, match=r"box_weight is not for the anchors \(2, 12\): \(2, 12, 1\)"):
        dense_implicit_loss(z, b, z_t, b_t, 1, box_weight=torch.ones(2, 12, 1))


# --- RoI heads ---


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_roi_equals_the_slow_version(temperature):
    inputs = roi_inputs()
    expected = slow.roi_implicit(*arrays(inputs), temperature)
    assert values(roi_implicit_loss(*inputs, temperature)) == pytest.approx(expected, rel=1e-9)


def test_equal_regions_cost_nothing():
    z, _, d, _ = roi_inputs()
    assert values(roi_implicit_loss(z, z, d, d)) == pytest.approx((0, 0), abs=1e-12)


def test_only_the_deltas_of_the_teachers_class_count():
    z, z_t, d, d_t = roi_inputs(regions=1)
    best = int(z_t[0, :-1].argmax())
    d.requires_grad_()
    roi_implicit_loss(z, z_t, d, d_t)[1].backward()
    assert d.grad.view(4, 4).abs().sum(dim=1).nonzero().flatten().tolist() == [best]
    np.testing.assert_allclose(d.grad.view(4, 4)[best].abs(), [0.25] * 4)  # L1 over four, whatever the gate


def test_roi_gradients():
    z, z_t, d, d_t = roi_inputs(regions=4, classes=3)
    z.requires_grad_(), d.requires_grad_()
    assert torch.autograd.gradcheck(lambda z, d: roi_implicit_loss(z, z_t, d, d_t), (z, d))


def test_the_roi_targets_carry_no_gradient():
    inputs = [x.requires_grad_() for x in roi_inputs()]
    sum(roi_implicit_loss(*inputs)).backward()
    assert [x.grad is not None for x in inputs] == [True, False, True, False]


def test_no_regions_cost_nothing_and_can_be_differentiated():
    inputs = [x.requires_grad_() for x in roi_inputs(regions=0)]
    terms = roi_implicit_loss(*inputs)
    assert values(terms) == (0, 0)
    sum(terms).backward()
    assert inputs[0].grad.shape == (0, 5)
    assert inputs[2].grad.shape == (0, 16)


def test_regions_that_are_certainly_background_stay_bounded():
    z, z_t, d, d_t = roi_inputs(regions=3000, dtype=torch.float32)
    z_t[:, -1] = 200.0  # no foreground probability is left in float32
    terms = roi_implicit_loss(z, z_t, d, d_t)
    assert all(torch.isfinite(t) for t in terms)
    assert terms[1] == 0


def test_roi_losses_are_float32_under_autocast_and_in_half_precision():
    inputs = [x.bfloat16() for x in roi_inputs()]
    expected = roi_implicit_loss(*(x.float() for x in inputs))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = roi_implicit_loss(*inputs)
    assert [t.dtype for t in found] == [torch.float32] * 2
    assert values(found) == values(expected)


def test_roi_errors_name_the_shapes():
    z, z_t, d, d_t = roi_inputs()
    with pytest.raises(ValueError, match=r"logits of student \(15, 5\) and teacher \(15, 4\)"):
        roi_implicit_loss(z, z_t[:, :4], d, d_t)
    with pytest.raises(ValueError, match=r"deltas of student \(15, 16\) and teacher \(14, 16\)"):
        roi_implicit_loss(z, z_t, d, d_t[:14])
    with pytest.raises(ValueError, match=r"4 classes need deltas \(15, 16\), got \(15, 4\)"):
        roi_implicit_loss(z, z_t, d[:, :4], d_t[:, :4])


class TestMatchStatistics:
    def test_the_student_gets_the_teachers_mean_and_deviation(self):
        torch.manual_seed(0)
        student, teacher = torch.randn(3, 4, 5, 6).double() * 7 + 2, torch.randn(3, 4, 5, 6).double() * 0.3 - 1
        matched = match_statistics(student, teacher)
        for statistic in (torch.mean, torch.std):
            torch.testing.assert_close(
                statistic(matched, dim=(0, 2, 3)), statistic(teacher, dim=(0, 2, 3)), rtol=1e-3, atol=1e-4
            )
        flat = torch.stack([student.flatten(), matched.flatten()]).view(2, 3, 4, 30).transpose(1, 2).reshape(2, 4, 90)
        for channel in range(4):  # what is where stays the student's
            assert torch.corrcoef(flat[:, channel])[0, 1] > 0.9999

    def test_scale_and_offset_of_the_student_do_not_matter(self):
        torch.manual_seed(1)
        student, teacher = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
        moved = student * 50 - 10
        torch.testing.assert_close(
            match_statistics(student, teacher), match_statistics(moved, teacher), rtol=1e-3, atol=1e-3
        )

    def test_gradient_and_constant_channels(self):
        torch.manual_seed(2)
        student = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
        teacher = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda s: match_statistics(s, teacher), (student,))
        assert torch.autograd.grad(match_statistics(student, teacher).sum(), teacher, allow_unused=True)[0] is None
        flat = torch.full((2, 2, 3, 3), 4.0, requires_grad=True)
        matched = match_statistics(flat, teacher.detach().float())
        matched.square().sum().backward()
        assert flat.grad.isfinite().all()
        expected = teacher.detach().float().mean((0, 2, 3), keepdim=True).expand_as(matched)
        torch.testing.assert_close(matched, expected, rtol=0, atol=1e-4)  # a rounded mean, divided by sqrt(1e-5)
