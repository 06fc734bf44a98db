"""Boxes on their way through a detector: anchors, targets of a batch, and detections after NMS."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import Matcher, _topk_min
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import batched_nms, box_iou, nms

from ds2d2_yolo.errors import UserError

_PAIRS = 2**22  # of boxes and anchors whose overlaps are held at a time, some 35 bytes each


def assign(matcher: Matcher, boxes: Tensor, anchors: Tensor) -> Tensor:
    """Return ``(M,)``, which of the boxes ``(N, 4)`` each of the anchors ``(M, 4)`` belongs to; -1: none, -2: between.

    What ``matcher`` makes of all overlaps at once, in bounded memory: 2,000 objects and the 200,000 anchors of 1024 px
    would take 13 GB.
    """
    if not len(boxes):
        return torch.full((len(anchors),), Matcher.BELOW_LOW_THRESHOLD, device=anchors.device)
    parts = boxes.split(max(_PAIRS // max(len(anchors), 1), 1))
    if len(parts) == 1:
        return matcher(box_iou(boxes, anchors))
    best, which, first = anchors.new_full((len(anchors),), -1.0), None, 0
    own = torch.zeros(len(anchors), dtype=torch.bool, device=anchors.device)
    for part in parts:
        overlap = box_iou(part, anchors)
        value, place = overlap.max(0)
        own |= (overlap == overlap.max(1, keepdim=True).values).any(0)
        place, better = place + first, value > best
        which = place if which is None else torch.where(better, place, which)
        best, first = torch.where(better, value, best), first + len(part)
    none, between = (which.new_full((), code) for code in (Matcher.BELOW_LOW_THRESHOLD, Matcher.BETWEEN_THRESHOLDS))
    matched = torch.where(best < matcher.high_threshold, between, which)
    matched = torch.where(best < matcher.low_threshold, none, matched)
    # The best anchors of each box learn all the same, from their own best box
    return torch.where(own, which, matched) if matcher.allow_low_quality_matches else matched


class Anchors(nn.Module):
    """torchvision's anchors with the levels' true strides.

    torchvision divides image by map and is a few pixels off on the coarse levels where that is no whole number (a
    stride of 114 instead of 128 at 800 px).

    Args:
        strides: Pixels a cell, one a level.
        sizes: Edge lengths in pixels of a level's square anchors, one tuple a level.
        ratios: Height by width.
    """

    _kept: tuple | None = None  # what the last call went by, and what it returned

    def __init__(self, strides: list[int], sizes: list[tuple[float, ...]], ratios: tuple[float, ...]):
        super().__init__()
        self.strides = list(strides)
        self.generator = AnchorGenerator(tuple(map(tuple, sizes)), (tuple(ratios),) * len(sizes))
        self.per_cell = len(sizes[0]) * len(ratios)

    def image_size(self, maps: list[Tensor]) -> tuple[int, int]:
        """Return height and width of the image that the maps of all levels were made from."""
        return maps[0].shape[-2] * self.strides[0], maps[0].shape[-1] * self.strides[0]

    def forward(self, maps: list[Tensor], levels: list[int] | None = None) -> list[Tensor]:
        """Return the anchors ``(H W A, 4)`` xyxy in pixels, float32, of every map.

        ``levels`` are the places of ``maps`` among all levels; default: all of them, in order.

        Raises:
            UserError: More or fewer maps than levels.
        """
        levels = list(range(len(self.strides))) if levels is None else levels
        if len(levels) != len(maps):
            raise UserError(f"the head has anchors for {len(levels)} levels, and the FPN gives it {len(maps)} maps")
        if torch.jit.is_tracing():  # a graph makes them for whatever size it is given
            return self._made(maps, levels)
        sizes, mode = [m.shape[-2:] for m in maps], torch.is_inference_mode_enabled()
        key = (levels, sizes, maps[0].device, mode)  # autograd takes no tensors from inference mode
        if self._kept is None or self._kept[0] != key:
            self._kept = key, self._made(maps, levels)
        return list(self._kept[1])

    def __getstate__(self) -> dict:
        """Leave the anchors of the last image out of copies and checkpoints."""
        return {key: value for key, value in super().__getstate__().items() if key != "_kept"}

    def _made(self, maps: list[Tensor], levels: list[int]) -> list[Tensor]:
        self.generator.set_cell_anchors(torch.float32, maps[0].device)
        every, cells = self.generator.cell_anchors, [self.generator.cell_anchors[i] for i in levels]
        try:
            self.generator.cell_anchors = cells
            strides = [(self.strides[i], self.strides[i]) for i in levels]
            return self.generator.grid_anchors([m.shape[-2:] for m in maps], strides)
        finally:
            self.generator.cell_anchors = every


def pixel_boxes(relative: Tensor, height: int, width: int) -> Tensor:
    """Return boxes ``(N, 4)`` xyxy in pixels of relative xywh ones, for an image of this size."""
    x, y, w, h = relative.unbind(1)  # a tensor of both sizes would be copied to the GPU, which waits
    return torch.stack([(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height], 1)


def targets_of(batch: dict, background: int = 0) -> list[dict[str, Tensor]]:
    """Return torchvision's targets, one an image, of an Ultralytics batch.

    Args:
        batch: ``img`` (B, C, H, W), ``bboxes`` (N, 4) xywh relative, ``cls`` (N, 1), ``batch_idx`` (N,).
        background: Classes that come before the data set's first: 1 where 0 is the background.

    Returns:
        ``boxes`` (n, 4) xyxy in pixels, float32, and ``labels`` (n,); boxes without area are left out.
    """
    image = batch["img"]
    height, width = image.shape[2:]
    boxes = pixel_boxes(batch["bboxes"].to(image.device, torch.float32).reshape(-1, 4), height, width)
    labels = batch["cls"].to(image.device).long().flatten() + background
    solid = (boxes[:, 2:] > boxes[:, :2]).all(1)
    index = batch["batch_idx"].to(image.device).long().flatten()
    chosen = [(index == i) & solid for i in range(len(image))]
    return [{"boxes": boxes[c], "labels": labels[c]} for c in chosen]


def top_candidates(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the ``count`` best of ``scores (B, n)`` and their places; all of them where there are fewer."""
    return scores.topk(_topk_min(scores, count, 1), dim=1)


def select(
    boxes: Tensor, scores: Tensor, groups: Tensor, iou: float, limit: int, score: float = 0.0, min_size: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return which boxes survive NMS, best first, as places ``(B, limit)`` and whether each place is taken.

    Works on a batch as one graph, so that an exported model takes any number of images. There are fewer places than
    ``limit`` where there are fewer boxes; a traced graph has always as many.

    Args:
        boxes: ``(B, n, 4)`` xyxy.
        scores: ``(B, n)``, 0 to 1.
        groups: ``(B, n)`` integers; boxes of different groups (classes, levels) do not suppress each other.
        iou: Overlap above which the lower score goes.
        limit: Boxes an image; where fewer survive, the last places are not taken (and point to box 0).
        score: Boxes of no higher score go.
        min_size: Boxes of a shorter edge go.
    """
    edges = boxes[..., 2:] - boxes[..., :2]
    candidates = (scores > score) & (edges >= min_size).all(-1)
    if torch.jit.is_tracing():
        kept, nothing = _nms_traced(boxes, scores, groups, candidates, iou), -torch.ones_like(scores)
        # As many empty places behind: there is always something to fill the limit with
        ranked = torch.cat([torch.where(kept, scores, nothing), nothing[:, :1].expand(-1, limit)], 1)
        best, places = ranked.topk(limit, dim=1)
        taken = best >= 0
        return torch.where(taken, places, torch.zeros_like(places)), taken
    places = torch.zeros(len(boxes), min(limit, boxes.shape[1]), dtype=torch.long, device=boxes.device)
    taken = torch.zeros_like(places, dtype=torch.bool)
    for i, wanted in enumerate(candidates):
        own = wanted.nonzero()[:, 0]
        own = own[batched_nms(boxes[i, own], scores[i, own], groups[i, own], iou)[:limit]]
        places[i, : len(own)], taken[i, : len(own)] = own, True
    return places, taken


def _nms_traced(boxes: Tensor, scores: Tensor, groups: Tensor, candidates: Tensor, iou: float) -> Tensor:
    """One NMS over all images: no loop whose length would be frozen into the exported graph."""
    image = torch.ones_like(groups).cumsum(0) - 1
    # Apart by the group in x and by the image in y: all in one row, as torchvision puts them, a large batch of many
    # classes would come to millions of pixels, where float32 moves boxes by tenths of one
    extent = torch.where(candidates[..., None], boxes, torch.zeros_like(boxes)).max() + 1
    apart = boxes.float() + torch.stack([groups, image, groups, image], -1) * extent.float()
    places = candidates.flatten().nonzero()[:, 0]
    kept = places[nms(apart.reshape(-1, 4)[places], scores.flatten()[places], iou)]
    groups = groups.flatten()
    flat = torch.zeros_like(groups).scatter(0, kept, torch.ones_like(kept))
    return flat.reshape(scores.shape) > 0


def best_detections(boxes: Tensor, scores: Tensor, labels: Tensor, agnostic: bool, **rule) -> Tensor:
    """Return the detections that ``select`` keeps by ``rule``, ``(B, n, 6)``: xyxy, score, label; unused rows are 0.

    ``agnostic``: boxes of different labels suppress each other.
    """
    places, taken = select(boxes, scores, torch.zeros_like(labels) if agnostic else labels, **rule)
    columns = (gather(boxes, places), gather(scores, places)[..., None], gather(labels, places)[..., None].to(boxes))
    return where_taken(torch.cat(columns, 2), taken)


def where_taken(rows: Tensor, taken: Tensor) -> Tensor:
    """Return ``rows (B, n, d)`` with those that are not taken 0: they point to box 0, which may be NaN."""
    return torch.where(taken[..., None], rows, torch.zeros_like(rows))


def gather(values: Tensor, places: Tensor) -> Tensor:
    """Return ``values (B, n)`` or ``(B, n, d)`` at ``places (B, m)``."""
    if values.dim() == 2:
        return values.gather(1, places)
    return values.gather(1, places[..., None].expand(-1, -1, values.shape[-1]))


def clipped(boxes: Tensor, height, width) -> Tensor:
    """Return ``boxes (..., 4)`` xyxy within an image of ``height`` x ``width`` pixels."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)], -1)
