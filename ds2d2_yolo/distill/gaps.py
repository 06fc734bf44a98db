"""Where in the image a knowledge amplifier's predictions on the student's and the teacher's maps differ (DS2D2)."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops.poolers import LevelMapper

from ds2d2_yolo.distill.amplifiers import PUBLISHED_IMAGES, Amplifier, DenseAmplifier, FasterRCNNAmplifier, Step
from ds2d2_yolo.method.implicit import dense_implicit_loss, roi_implicit_loss


@torch.no_grad()
def gap_maps(amplifier: Amplifier, student: list[Tensor], teacher: list[Tensor], step: Step) -> list[Tensor]:
    """Return an amplifier's implicit loss spread over the cells it comes from.

    Args:
        amplifier: A dense head's, or Faster R-CNN's, which is asked about the regions in ``step.preds["rois"]``.
        student: Maps ``(B, C, H, W)``, one a level.
        teacher: Maps of the same shapes.
        step: The batch, and what the student's head made of it.

    Returns:
        Maps ``(B, H, W)``, one a level, never negative; the sum over all of them is ``amplifier.loss(...)``. A
        region's part lies evenly on its cells at the level that it is pooled from.
    """
    if isinstance(amplifier, DenseAmplifier):
        return _dense(amplifier, student, teacher, step)
    return _regions(amplifier, student, teacher, step.preds["rois"])


def _dense(amplifier: DenseAmplifier, student: list[Tensor], teacher: list[Tensor], step: Step) -> list[Tensor]:
    seen, target = amplifier(student), amplifier(teacher)
    weights = amplifier.weights(target, student, step)
    confidence = target.logits.amax(-1).sigmoid()
    mask = weights.get("cls_mask", torch.ones_like(confidence))
    once = confidence.new_ones(1, 1)

    def of_one(*pair):  # an anchor alone: its part of both sums
        return dense_implicit_loss(*(p[None, None] for p in pair), normalizer=1.0, box_weight=once)

    cls, box = torch.vmap(torch.vmap(of_one))(*seen, *target)
    box = amplifier.box_gain * box * weights.get("box_weight", confidence * mask)
    each = (cls * mask + box) / weights["normalizer"].clamp(min=1)
    cells = [m.shape[2] * m.shape[3] for m in student]
    anchors = each.shape[1] // sum(cells)  # at every cell
    parts = each.split([anchors * n for n in cells], dim=1)
    return [p.reshape(len(p), *m.shape[2:], anchors).sum(-1) for p, m in zip(parts, student, strict=True)]


def _regions(amplifier: FasterRCNNAmplifier, student: list[Tensor], teacher: list[Tensor], rows: Tensor):
    (z, deltas), (target, wanted) = amplifier(student, rows), amplifier(teacher, rows)
    maps = [m.new_zeros(m.shape[0], *m.shape[2:], dtype=torch.float32) for m in student]
    if not len(rows):
        return maps
    alone = zip(*(t.split(1) for t in (z, target, deltas, wanted)), strict=True)
    cls, box = torch.tensor([roi_implicit_loss(*one) for one in alone], device=rows.device).unbind(1)
    gate = target.softmax(1)[:, :-1].amax(1)
    part = PUBLISHED_IMAGES / len(student[0]) if amplifier.published else 1 / len(rows)
    each = cls * part + amplifier.box_gain * gate * box / gate.sum()
    head = amplifier.head
    strides = [head.options.strides[i] for i in range(head.options.roi_levels)]
    level = LevelMapper(strides[0].bit_length() - 1, strides[-1].bit_length() - 1)([rows[:, 1:]])
    for row, value, place in zip(rows.tolist(), each, level.tolist(), strict=True):
        plane, stride = maps[amplifier.levels.index(place)][int(row[0])], strides[place]
        x1, y1, x2, y2 = (int(v // stride) for v in row[1:])
        x1, y1 = min(max(x1, 0), plane.shape[1] - 1), min(max(y1, 0), plane.shape[0] - 1)
        covered = plane[y1 : max(y2, y1) + 1, x1 : max(x2, x1) + 1]
        covered += value / covered.numel()
    return maps
