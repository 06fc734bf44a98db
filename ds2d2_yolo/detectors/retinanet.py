"""RetinaNet's head on torchvision's parts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.retinanet import RetinaNetHead

from ds2d2_yolo.detectors.boxes import Anchors, assign, best_detections, clipped, gather, targets_of, top_candidates
from ds2d2_yolo.detectors.options import read, require


@dataclass
class RetinaNetOptions:
    """What a model YAML can set; the defaults are the paper's, or torchvision's where it states none."""

    strides: tuple[int, ...] = (8, 16, 32, 64, 128)
    octave_scale: float = 4.0  # smallest anchor of a level, in its strides
    scales_per_octave: int = 3
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # height by width
    norm_groups: int = 0  # of a GroupNorm behind each convolution of the subnets; 0: none (torchvision's v2 has 32)
    positive_iou: float = 0.5
    negative_iou: float = 0.4
    cls_gain: float = 1.0
    box_gain: float = 1.0
    score: float = 0.05  # detections below are dropped
    nms_iou: float = 0.5
    candidates: int = 1000  # a level, before NMS
    max_det: int = 100  # an image, after NMS; Ultralytics' max_det replaces it in training and validation

    def __post_init__(self):
        require(self.negative_iou <= self.positive_iou, "RetinaNetDetect", "negative_iou is above positive_iou")


class RetinaNetDetect(nn.Module):
    """RetinaNet's classification and box subnets with anchors, losses and detections.

    Args:
        nc: Classes.
        channels: Channels of every map of the FPN.
        options: Fields of ``RetinaNetOptions`` by name.
    """

    end2end = True  # detections come after NMS

    def __init__(self, nc: int, channels: int = 256, options: dict | None = None):
        super().__init__()
        self.options = o = read(RetinaNetOptions, options, "RetinaNetDetect")
        self.nc, self.nl, self.max_det, self.agnostic_nms = nc, len(o.strides), o.max_det, False
        self.stride = torch.tensor(o.strides, dtype=torch.float32)
        steps = [2 ** (i / o.scales_per_octave) for i in range(o.scales_per_octave)]
        self.anchors = Anchors(o.strides, [tuple(o.octave_scale * s * t for t in steps) for s in o.strides], o.ratios)
        require(channels % (o.norm_groups or 1) == 0, "RetinaNetDetect", f"norm_groups={o.norm_groups} of {channels}")
        norm = partial(nn.GroupNorm, o.norm_groups) if o.norm_groups else None
        self.head = RetinaNetHead(channels, self.anchors.per_cell, nc, norm_layer=norm)
        self.coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
        self.matcher = Matcher(o.positive_iou, o.negative_iou, allow_low_quality_matches=True)

    def forward(self, maps: list[Tensor]):
        """Return what the loss needs; in eval mode the detections ``(B, max_det, 6)`` before it, as Ultralytics does.

        A detection is xyxy in pixels, score and class; unused rows are 0. A traced model returns detections alone.
        """
        anchors, size = self.anchors(maps), self.anchors.image_size(maps)
        levels = [self.head([m]) for m in maps]
        raw = {key: torch.cat([level[key] for level in levels], 1) for key in levels[0]}
        raw |= {"anchors": torch.cat(anchors), "size": size}
        if self.training:
            return raw
        if torch.is_grad_enabled():  # Ultralytics' visualize=True follows them back
            raw["scores"] = raw["cls_logits"].transpose(1, 2)
        detections = self.detections(levels, anchors, size)
        return detections if torch.jit.is_tracing() else (detections, raw)

    def detections(self, levels: list[dict], anchors: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Return the detections after NMS, ``(B, max_det, 6)``, of every level's outputs and anchors."""
        o, scores, boxes, labels = self.options, [], [], []
        for level, anchor in zip(levels, anchors, strict=True):
            best, places = top_candidates(level["cls_logits"].float().sigmoid().flatten(1), o.candidates)
            cell = torch.div(places, self.nc, rounding_mode="floor")
            delta = gather(level["bbox_regression"].float(), cell)
            chosen = self.coder.decode_single(delta.flatten(0, 1), anchor[cell].flatten(0, 1))
            scores.append(best)
            boxes.append(clipped(chosen.reshape(*cell.shape, 4), *size))
            labels.append(places % self.nc)
        scores, boxes, labels = torch.cat(scores, 1), torch.cat(boxes, 1), torch.cat(labels, 1)
        rule = {"iou": o.nms_iou, "limit": self.max_det, "score": o.score}
        return best_detections(boxes, scores, labels, self.agnostic_nms, **rule)

    def match(self, anchors: Tensor, targets: list[dict]) -> list[Tensor]:
        """Return for every image which box each anchor belongs to: its index, -1 for none, -2 for in between."""
        return [assign(self.matcher, t["boxes"], anchors) for t in targets]

    def loss(self, raw: dict, batch: dict) -> dict[str, Tensor]:
        """Return torchvision's losses, means over the images; ``raw`` keeps the assignment for whoever needs it."""
        targets = targets_of(batch)
        raw["matched"] = self.match(raw["anchors"], targets)
        outputs = {k: raw[k].float() for k in ("cls_logits", "bbox_regression")}
        with torch.autocast(raw["anchors"].device.type, enabled=False):
            losses = self.head.compute_loss(targets, outputs, [raw["anchors"]] * len(targets), raw["matched"])
        o = self.options
        return {"box_loss": o.box_gain * losses["bbox_regression"], "cls_loss": o.cls_gain * losses["classification"]}
