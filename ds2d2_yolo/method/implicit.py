"""Implicit stream: what a frozen amplifier predicts from student and teacher features, compared (DS2D2)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ds2d2_yolo.method.shared import moments, processes, shared

_EPS = 1e-5  # of a variance, as in BatchNorm
_MIN_AREA = 1e-6  # px^2, keeps GIoU of boxes without extent finite


def dense_implicit_loss(
    student_logits: Tensor,
    student_boxes: Tensor,
    teacher_logits: Tensor,
    teacher_boxes: Tensor,
    normalizer: Tensor | float,
    cls_mask: Tensor | None = None,
    box_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scalars (cls, box) of a dense head with N anchors and K classes, q = sigmoid(z^t).

    cls = sum_i u_i sum_k |sigmoid(z^s) - q| BCE(z^s, q) / normalizer     (quality focal loss, beta 1)
    box = sum_i v_i (1 - GIoU(b^s, b^t)) / normalizer

    Logits are (B, N, K), boxes (B, N, 4) xyxy in pixels, `cls_mask` u and `box_weight` v (B, N). u defaults to 1 and
    v to u sigmoid(max_k z^t); a `box_weight` is used as given. A normalizer below 1 counts as 1. Only the student's
    side carries gradient. Computed in float32 (float64 stays). Raises ValueError where shapes disagree.
    """
    _check_same("logits", student_logits, teacher_logits)
    _check_same("boxes", student_boxes, teacher_boxes)
    for name, value in (("student_boxes", student_boxes[..., 0]), ("cls_mask", cls_mask), ("box_weight", box_weight)):
        if value is not None and value.shape != student_logits.shape[:2]:
            raise ValueError(f"{name} is not for the anchors {tuple(student_logits.shape[:2])}: {tuple(value.shape)}")
    z, b = _float(student_logits), _float(student_boxes)
    q, target_boxes = _float(teacher_logits.detach()).sigmoid(), _float(teacher_boxes.detach())
    n = normalizer.detach().clamp(min=1) if isinstance(normalizer, Tensor) else max(normalizer, 1.0)

    quality = ((z.sigmoid() - q).abs() * F.binary_cross_entropy_with_logits(z, q, reduction="none")).sum(dim=-1)
    if box_weight is None:
        box_weight = q.amax(dim=-1) if cls_mask is None else q.amax(dim=-1) * cls_mask
    if cls_mask is not None:
        quality = quality * cls_mask.detach()
    distance = (1 - _giou(b, target_boxes)) * box_weight.detach()
    return quality.sum() / n, distance.sum() / n


def confidence_mass(teacher_logits: Tensor) -> Tensor:
    """Bounded normaliser: sum of sigmoid(max_k z^t) over the anchors of the batch (B, N, K), at least B and 1."""
    mass = _float(teacher_logits.detach()).amax(dim=-1).sigmoid().sum()
    return shared(mass).clamp(min=max(len(teacher_logits), 1))


def match_statistics(student: Tensor, teacher: Tensor) -> Tensor:
    """The student's map with the teacher's mean and deviation per channel, over batch and space; all (B, C, H, W).

    A frozen head is asked about maps as it knows them from the first step on, while what is where stays the student's.
    Not in the paper. Gradients flow to the student only; a constant channel becomes the teacher's mean.
    """
    s, t = _float(student), _float(teacher.detach())
    mean, variance = moments(t)
    deviation = (variance + _EPS).sqrt()
    if processes() == 1:
        # Half the time of the same written out; nn.functional's refuses a single cell
        matched = torch.batch_norm(s, deviation.flatten(), mean.flatten(), None, None, True, 0.0, _EPS, True)
    else:
        own_mean, own_variance = moments(s)
        matched = (s - own_mean) * (deviation / (own_variance + _EPS).sqrt()) + mean
    return matched.to(student.dtype)


def roi_implicit_loss(
    student_cls: Tensor,
    teacher_cls: Tensor,
    student_deltas: Tensor,
    teacher_deltas: Tensor,
    temperature: float = 3.0,
) -> tuple[Tensor, Tensor]:
    """Scalars (cls, box) of a RoI head with R regions and K classes, the background last.

    cls = T^2/2 mean_i KL(softmax(z^t/T) || softmax(z^s/T)), the mean over regions
    box = sum_i g_i |delta^s_i[k_i] - delta^t_i[k_i]|_1 / (4 sum_i g_i), g_i and k_i the maximum and its index of
          softmax(z^t_i) without the background

    Logits are (R, K+1), class-specific deltas (R, 4K). Only the student's side carries gradient; without regions both
    are zero. (The published recipe multiplies cls by R.) Raises ValueError where shapes disagree.
    """
    _check_same("logits", student_cls, teacher_cls)
    _check_same("deltas", student_deltas, teacher_deltas)
    regions, classes = student_cls.shape[0], student_cls.shape[1] - 1
    if classes < 1 or student_deltas.shape != (regions, 4 * classes):
        raise ValueError(
            f"{classes} classes need deltas {(regions, 4 * classes)}, got {tuple(student_deltas.shape)} "
            f"for logits {tuple(student_cls.shape)}"
        )
    z_s, z_t = _float(student_cls), _float(teacher_cls.detach())
    targets = (z_t / temperature).log_softmax(dim=1)
    divergence = F.kl_div((z_s / temperature).log_softmax(dim=1), targets, reduction="sum", log_target=True)
    cls = 0.5 * temperature**2 * divergence / shared(divergence.new_full((), regions)).clamp(min=1 / processes())

    gate, best = z_t.softmax(dim=1)[:, :classes].max(dim=1)
    errors = (_float(student_deltas) - _float(teacher_deltas.detach())).abs().view(regions, classes, 4).sum(dim=2)
    chosen = errors.gather(1, best[:, None]).squeeze(1)
    return cls, (gate * chosen).sum() / (4 * shared(gate.sum())).clamp(min=_MIN_AREA)


def _giou(a: Tensor, b: Tensor) -> Tensor:
    """GIoU in [-1, 1] of boxes (..., 4) xyxy, pair by pair; inverted sides count as no extent."""
    (a_low, a_high), (b_low, b_high) = a.split(2, -1), b.split(2, -1)  # few operations: on a GPU each is a launch
    overlap = _area(torch.maximum(a_low, b_low), torch.minimum(a_high, b_high))
    hull = _area(torch.minimum(a_low, b_low), torch.maximum(a_high, b_high)).clamp(min=_MIN_AREA)
    union = (_area(a_low, a_high) + _area(b_low, b_high) - overlap).clamp(min=_MIN_AREA)
    return overlap / union - (hull - union) / hull


def _area(low: Tensor, high: Tensor) -> Tensor:
    width, height = (high - low).clamp(min=0).unbind(-1)
    return width * height


def _float(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _check_same(name: str, student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(f"{name} of student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ in shape")
