"""Faster R-CNN's head on torchvision's parts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead, concat_box_prediction_layers
from torchvision.ops.poolers import LevelMapper

from ds2d2_yolo.detectors.boxes import (
    Anchors,
    assign,
    best_detections,
    clipped,
    gather,
    select,
    targets_of,
    top_candidates,
    where_taken,
)
from ds2d2_yolo.detectors.options import read, require
from ds2d2_yolo.method.shared import processes, shared

_SMALLEST_PROPOSAL = 1e-3  # pixels; as in torchvision, like the next
_SMALLEST_DETECTION = 1e-2


@dataclass
class FasterRCNNOptions:
    """What a model YAML can set; the defaults are the paper's, or torchvision's where it states none."""

    strides: tuple[int, ...] = (4, 8, 16, 32, 64)
    anchor_scale: float = 8.0  # edge of a level's anchor, in its strides
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # height by width
    rpn_convs: int = 1  # before the proposals' two outputs (torchvision's v2 has 2)
    rpn_positive_iou: float = 0.7
    rpn_negative_iou: float = 0.3
    rpn_samples: int = 256
    rpn_positives: float = 0.5
    rpn_nms_iou: float = 0.7
    proposals_before_nms: int = 2000  # a level, in training
    proposals: int = 1000  # an image, after NMS
    test_proposals_before_nms: int = 1000
    test_proposals: int = 1000
    roi_levels: int = 4
    roi_size: int = 7
    roi_sampling: int = 2
    box_convs: int = 0  # with BatchNorm, before one layer of `fc` instead of two (torchvision's v2 has 4)
    fc: int = 1024
    roi_iou: float = 0.5
    roi_samples: int = 512
    roi_positives: float = 0.25
    box_weights: tuple[float, ...] = (10.0, 10.0, 5.0, 5.0)
    rpn_gain: float = 1.0
    cls_gain: float = 1.0
    box_gain: float = 1.0
    score: float = 0.05  # detections below are dropped
    nms_iou: float = 0.5
    max_det: int = 100  # an image, after NMS; Ultralytics' max_det replaces it in training and validation

    def __post_init__(self):
        def needs(met: bool, problem: str):
            require(met, "FasterRCNNDetect", problem)

        needs(self.rpn_negative_iou <= self.rpn_positive_iou, "rpn_negative_iou is above rpn_positive_iou")
        needs(self.roi_levels <= len(self.strides), f"roi_levels={self.roi_levels} of {len(self.strides)} strides")
        pooled = self.strides[: self.roi_levels]
        doubling = all(b == 2 * a for a, b in zip(pooled, pooled[1:], strict=False)) and pooled[0].bit_count() == 1
        needs(doubling, f"strides={list(pooled)} of the pooled maps must double from a power of two")
        needs(len(self.box_weights) == 4, f"box_weights={list(self.box_weights)} must be four numbers")


def box_head(channels: int, options: FasterRCNNOptions) -> nn.Module:
    """Return what stands between the pooled regions ``(R, C, size, size)`` and the class and box layers."""
    o = options
    if not o.box_convs:
        return TwoMLPHead(channels * o.roi_size**2, o.fc)
    shape = (channels, o.roi_size, o.roi_size)
    return FastRCNNConvFCHead(shape, [channels] * o.box_convs, [o.fc], norm_layer=nn.BatchNorm2d)


class FasterRCNNDetect(nn.Module):
    """Faster R-CNN's proposal network and box head with losses and detections.

    Args:
        nc: Classes, the background not among them.
        channels: Channels of every map of the FPN.
        options: Fields of ``FasterRCNNOptions`` by name.
    """

    end2end = True  # detections come after NMS

    def __init__(self, nc: int, channels: int = 256, options: dict | None = None):
        super().__init__()
        self.options = o = read(FasterRCNNOptions, options, "FasterRCNNDetect")
        self.nc, self.nl, self.max_det, self.agnostic_nms = nc, len(o.strides), o.max_det, False
        self.stride = torch.tensor(o.strides, dtype=torch.float32)
        self.anchors = Anchors(o.strides, [(o.anchor_scale * s,) for s in o.strides], o.ratios)
        self.rpn = RegionProposalNetwork(
            self.anchors.generator,
            RPNHead(channels, self.anchors.per_cell, o.rpn_convs),
            o.rpn_positive_iou,
            o.rpn_negative_iou,
            o.rpn_samples,
            o.rpn_positives,
            {"training": o.proposals_before_nms, "testing": o.test_proposals_before_nms},
            {"training": o.proposals, "testing": o.test_proposals},
            o.rpn_nms_iou,
        )
        self._pooled_strides = (int(math.log2(o.strides[0])), int(math.log2(o.strides[o.roi_levels - 1])))
        self.roi_heads = RoIHeads(
            None,  # `pool` takes the place of torchvision's
            box_head(channels, o),
            FastRCNNPredictor(o.fc, nc + 1),
            o.roi_iou,
            o.roi_iou,
            o.roi_samples,
            o.roi_positives,
            o.box_weights,
            o.score,
            o.nms_iou,
            o.max_det,
        )

    def forward(self, maps: list[Tensor]):
        """Return what the loss needs; in eval mode the detections ``(B, max_det, 6)`` before it, as Ultralytics does.

        A detection is xyxy in pixels, score and class; unused rows are 0. A traced model returns detections alone.
        """
        raw = {"maps": maps, "anchors": self.anchors(maps), "size": self.anchors.image_size(maps)}
        levels = zip(*self.rpn.head(maps), strict=True)
        levels = [concat_box_prediction_layers([logits], [deltas]) for logits, deltas in levels]
        images = maps[0].shape[0]
        raw["objectness"] = [logits.reshape(images, -1) for logits, _ in levels]
        raw["deltas"] = [deltas.reshape(images, -1, 4) for _, deltas in levels]
        if self.training:
            return raw
        detections = self.detections(raw)
        return detections if torch.jit.is_tracing() else (detections, raw)

    def propose(self, raw: dict, before_nms: int, limit: int) -> tuple[Tensor, Tensor]:
        """Return the proposals ``(B, limit, 4)`` xyxy in pixels, best first, and which of the rows hold one."""
        boxes, scores, levels = [], [], []
        parts = zip(raw["objectness"], raw["deltas"], raw["anchors"], strict=True)
        for level, (logit, delta, anchor) in enumerate(parts):
            best, places = top_candidates(logit.detach().float(), before_nms)
            delta = gather(delta.detach().float(), places)
            chosen = self.rpn.box_coder.decode_single(delta.flatten(0, 1), anchor[places].flatten(0, 1))
            boxes.append(clipped(chosen.reshape(*places.shape, 4), *raw["size"]))
            scores.append(best.sigmoid())
            levels.append(torch.full_like(places, level))
        boxes, scores, levels = torch.cat(boxes, 1), torch.cat(scores, 1), torch.cat(levels, 1)
        # torchvision keeps every score from 0 on; a sigmoid in float32 can be exactly 0
        places, taken = select(boxes, scores, levels, self.options.rpn_nms_iou, limit, -1.0, _SMALLEST_PROPOSAL)
        return where_taken(gather(boxes, places), taken), taken

    def detections(self, raw: dict) -> Tensor:
        """Return the detections after NMS, ``(B, max_det, 6)``."""
        o = self.options
        rois, _ = self.propose(raw, o.test_proposals_before_nms, o.test_proposals)
        images, count = rois.shape[0], rois.shape[1]
        image = torch.arange(images, device=rois.device, dtype=rois.dtype)[:, None, None].expand(-1, count, -1)
        logits, deltas = self.predict(raw["maps"], torch.cat([image, rois], 2).reshape(-1, 5))
        scores = logits.softmax(-1)[:, 1:].reshape(images, count, self.nc)
        if torch.is_grad_enabled():  # Ultralytics' visualize=True follows them back, to every map, pooled from or not
            raw["scores"] = scores.logit(1e-6).transpose(1, 2) + sum(0 * m.sum() for m in raw["maps"])
        boxes = self.roi_heads.box_coder.decode_single(deltas, rois.reshape(-1, 4))
        boxes = boxes.reshape(images, count, self.nc + 1, 4)[:, :, 1:].reshape(images, -1, 4)
        boxes, scores = clipped(boxes, *raw["size"]), scores.flatten(1)
        labels = torch.arange(self.nc, device=scores.device).repeat(count).expand_as(scores)
        # A row without a proposal has no extent, and min_size drops what it is decoded to
        rule = {"iou": o.nms_iou, "limit": self.max_det, "score": o.score, "min_size": _SMALLEST_DETECTION}
        return best_detections(boxes, scores, labels, self.agnostic_nms, **rule)

    def pool(self, maps: list[Tensor], rows: Tensor) -> Tensor:
        """Return what RoIAlign makes of ``rows (R, 5)``, image and xyxy: ``(R, C, size, size)``.

        Each region comes from the level of its size. torchvision's ``MultiScaleRoIAlign`` takes a list of images; this
        takes a batch whose size a traced graph leaves open, with the same mapper and the same operator.
        """
        o = self.options
        # Not torchvision's function: on a GPU, in deterministic mode, it compiles another form that knows no second
        # backward pass, and that needs a compiler and several gigabytes
        align = torch.ops.torchvision.roi_align
        level = LevelMapper(*self._pooled_strides)([rows[:, 1:]])
        order, pooled = [], []
        for i, m in enumerate(maps[: o.roi_levels]):
            places = (level == i).nonzero()[:, 0]
            order.append(places)
            size = (o.roi_size, o.roi_size)
            pooled.append(align(m.float(), rows[places], 1 / o.strides[i], *size, o.roi_sampling, False))
        return torch.cat(pooled)[torch.cat(order).argsort()].to(maps[0].dtype)

    def predict(self, maps: list[Tensor], rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return class logits ``(R, K + 1)``, background first, and deltas ``(R, 4 (K + 1))``, float32, of ``rows``."""
        logits, deltas = self.roi_heads.box_predictor(self.roi_heads.box_head(self.pool(maps, rows)))
        return logits.float(), deltas.float()

    def loss(self, raw: dict, batch: dict) -> dict[str, Tensor]:
        """Return torchvision's losses; ``raw`` keeps the sampled regions (``rois``) for whoever needs them."""
        o, targets = self.options, targets_of(batch, background=1)
        rpn_cls, rpn_box = self._rpn_loss(raw, targets)
        rois, taken = self.propose(raw, o.proposals_before_nms, o.proposals)
        rois = [r[t] for r, t in zip(rois, taken, strict=True)]
        rois, _, labels, wanted = self.roi_heads.select_training_samples(rois, targets)
        raw["rois"] = convert_to_rows(rois)
        logits, deltas = self.predict(raw["maps"], raw["rois"])
        with torch.autocast(logits.device.type, enabled=False):
            # No region at all: a mean over none is NaN, and a sum is 0
            cls, box = fastrcnn_loss(logits, deltas, labels, wanted) if len(logits) else (logits.sum(), deltas.sum())
            part = _part(lambda: len(logits), logits)
            cls, box = part * cls, part * box
        losses = {"rpn_cls_loss": o.rpn_gain * rpn_cls, "rpn_box_loss": o.rpn_gain * rpn_box}
        return {**losses, "cls_loss": o.cls_gain * cls, "box_loss": o.box_gain * box}

    def _rpn_loss(self, raw: dict, targets: list[dict]) -> tuple[Tensor, Tensor]:
        anchors = torch.cat(raw["anchors"])
        objectness = torch.cat([logits.float() for logits in raw["objectness"]], 1).reshape(-1, 1)
        deltas = torch.cat([d.float() for d in raw["deltas"]], 1).reshape(-1, 4)
        with torch.autocast(deltas.device.type, enabled=False):
            found = [assign(self.rpn.proposal_matcher, t["boxes"], anchors) for t in targets]
            labels = [torch.where(f == Matcher.BETWEEN_THRESHOLDS, -1.0, (f >= 0).float()) for f in found]
            boxes = [t["boxes"] if len(t["boxes"]) else anchors for t in targets]  # none: nothing is regressed
            matched = [b[f.clamp(min=0)] for b, f in zip(boxes, found, strict=True)]
            wanted = self.rpn.box_coder.encode(matched, [anchors] * len(targets))
            cls, box = self.rpn.compute_loss(objectness, deltas, labels, wanted)
            part = _part(lambda: sum(map(self._sampled, labels)), objectness)
            return part * cls, part * box

    def _sampled(self, labels: Tensor) -> Tensor:
        """How many anchors of an image torchvision's sampler takes, by its rule."""
        o = self.options
        positives = (labels >= 1).sum().clamp(max=int(o.rpn_samples * o.rpn_positives))
        return positives + torch.minimum((labels == 0).sum(), o.rpn_samples - positives)


def _part(counted: Callable[[], Tensor | int], like: Tensor) -> Tensor | float:
    """What makes a mean over the samples that this process has ``counted`` one over those of all processes."""
    if processes() == 1 or not torch.is_grad_enabled():  # validation: processes have different numbers of batches
        return 1.0
    count = torch.as_tensor(counted(), dtype=torch.float32, device=like.device)
    return count / shared(count).clamp(min=1e-6)


def convert_to_rows(rois: list[Tensor]) -> Tensor:
    """Return the regions ``(n, 4)`` of every image as rows ``(R, 5)``: the image's number before xyxy."""
    return torch.cat([torch.cat([r.new_full((len(r), 1), i), r], 1) for i, r in enumerate(rois)])
