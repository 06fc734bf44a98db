"""How far an exported detector is from the PyTorch one, as numbers: boxes in pixels, scores in [0, 1].

Two layouts occur. *Raw* outputs, `(B, 4 + nc, N)` with xywh boxes, are compared element by element. *Detections*,
`(B, K, 6)` rows of x1, y1, x2, y2, score, class out of NMS or a top-k inside the graph, have no fixed order and may
differ in which of two all but equal candidates survived; they are compared as sets, against the candidates of PyTorch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou
from ultralytics.utils.metrics import bbox_iou

# Float32 exports were measured to differ by up to 2e-4 px and 7e-6 at 640 px, float16 ones by 0.3 px and 2e-2.
BOX_TOLERANCE = 0.05  # pixels
SCORE_TOLERANCE = 0.001
MAX_UNMATCHED = 0.01  # share of the detections
COMPARED_SCORE = 0.25  # detections below matter to nobody, unless there are fewer than COMPARED_TOP above
COMPARED_TOP = 50
IOU_MARGIN = 0.01  # overlaps this close to the NMS threshold may fall on either side of it
LOST_IOU, LOST_SCORE = 0.5, 0.25  # what no precision explains
TWIN_IOU = 0.9  # how much two boxes overlap that are the same detection where no NMS says so


@dataclass(frozen=True)
class Agreement:
    """Largest differences over `images`; `compared` detections, of raw outputs the boxes that may become some, of which
    `unmatched` are in one output only and for no reason that rounding explains. NaN anywhere counts as infinite."""

    images: int = 0
    box: float = 0.0
    score: float = 0.0
    compared: int = 0
    unmatched: int = 0

    def __add__(self, other: Agreement) -> Agreement:
        """The agreement over both sets of images."""
        return Agreement(
            images=self.images + other.images,
            box=max(self.box, other.box),
            score=max(self.score, other.score),
            compared=self.compared + other.compared,
            unmatched=self.unmatched + other.unmatched,
        )

    def __str__(self) -> str:
        plural = "s" * (self.images != 1)
        if not self.compared:
            return f"ran on {self.images} image{plural}, but neither model detects anything there: nothing compared"
        tail = f", {self.unmatched} of {self.compared} detections without a counterpart" if self.unmatched else ""
        return (
            f"checked on {self.images} image{plural}: boxes differ by at most {self.box:.2g} px, "
            f"scores by at most {self.score:.2g}{tail}"
        )

    @property
    def near(self) -> bool:
        """Whether the two may be one detector in reduced precision: finite, and most detections in both."""
        return math.isfinite(self.box) and math.isfinite(self.score) and self.unmatched <= self.compared / 2

    @property
    def close(self) -> bool:
        """Whether the two are one detector up to float32 rounding (BOX_TOLERANCE, SCORE_TOLERANCE, MAX_UNMATCHED)."""
        few = self.unmatched <= MAX_UNMATCHED * self.compared
        return self.box <= BOX_TOLERANCE and self.score <= SCORE_TOLERANCE and few


@dataclass(frozen=True)
class Candidates:
    """What a detector chose one image's detections from: boxes (N, 4) xyxy in pixels, scores (N, nc)."""

    boxes: Tensor
    scores: Tensor

    @classmethod
    def from_raw(cls, raw: Tensor) -> Candidates:
        """From one image's raw output (4 + nc, N), boxes in xywh."""
        return cls(box_convert(raw[:4].T, "cxcywh", "xyxy"), raw[4:].T)

    @classmethod
    def from_detections(cls, rows: Tensor, nc: int) -> Candidates:
        """From rows (N, 6); a row offers its own class only, and nothing where its score is 0 (padding)."""
        rows = rows[rows[:, 4] > 0]
        scores = rows.new_full((len(rows), nc), torch.inf)
        scores[torch.arange(len(rows)), rows[:, 5].long()] = rows[:, 4]
        return cls(rows[:, :4], scores)


@dataclass(frozen=True)
class Selection:
    """How detections were selected: NMS at `iou` (None: a top-k without NMS), scores above `conf`, at most `max_det`
    (None: the number of rows); `agnostic`: boxes of different classes compete. Scores up to `slack` apart are a tie."""

    iou: float | None = None
    conf: float = 0.0
    max_det: int | None = None
    agnostic: bool = False
    slack: float = SCORE_TOLERANCE


def _largest(difference: Tensor) -> float:
    """Largest absolute entry; infinite where one is NaN, for NaN would pass every comparison with a tolerance."""
    largest = difference.abs().max().item() if difference.numel() else 0.0
    return math.inf if math.isnan(largest) else largest


def compare_raw(exported: Tensor, reference: Tensor) -> Agreement:
    """Element by element difference of two raw outputs (B, 4 + nc, N).

    Boxes without a counterpart are those of scores worth comparing that overlap by less than LOST_IOU, or whose scores
    are LOST_SCORE apart.

    Raises:
        ValueError: shapes differ.
    """
    if exported.shape != reference.shape:
        raise ValueError(f"outputs of shape {tuple(exported.shape)} and {tuple(reference.shape)} cannot be compared")
    difference = exported.float() - reference.float()
    box, score = _largest(difference[:, :4]), _largest(difference[:, 4:])
    scores = reference[:, 4:].float().amax(1)
    floors = scores.new_tensor([_floor(of_image) for of_image in scores])
    compared = torch.maximum(scores, exported[:, 4:].float().amax(1)) >= floors[:, None]
    overlap = bbox_iou(exported[:, :4].mT.float(), reference[:, :4].mT.float(), xywh=True)[..., 0]
    moved = (overlap < LOST_IOU) & (difference[:, :4].abs().amax(1) > BOX_TOLERANCE)  # which boxes without area may not
    lost = moved | (difference[:, 4:].abs().amax(1) > LOST_SCORE)
    return Agreement(len(exported), box, score, int(compared.sum()), int((compared & lost).sum()))


def compare_detections(exported: Tensor, reference: Tensor, candidates: Candidates, rule: Selection) -> Agreement:
    """Difference of one image's detections, exported (K, 6) and reference (M, 6); rows of score 0 are padding.

    Every exported detection must be one of PyTorch's candidates: the distance to the nearest of its class is the
    difference reported. NMS must have been done, and every detection of PyTorch must be there, be suppressed by one
    that is, or lie at the threshold or the last place, where rounding decides.
    """
    if not torch.isfinite(exported).all():
        return Agreement(1, math.inf, math.inf, max(len(exported), 1))
    limit = rule.max_det or len(exported)
    exported, reference = exported[exported[:, 4] > 0].float(), reference[reference[:, 4] > 0].float()
    floor = _floor(reference[:, 4])
    looked_at, expected = exported[exported[:, 4] >= floor], reference[reference[:, 4] >= floor]

    box, score, strangers = _nearest(looked_at, candidates)
    missing = _missing(expected, exported, rule, full=len(exported) >= limit)
    unmatched = strangers + missing + _unsuppressed(looked_at, rule)
    return Agreement(1, box, score, max(len(looked_at), len(expected)), unmatched)


def _floor(scores: Tensor) -> float:
    """The score from which on detections are compared."""
    if not len(scores):
        return 0.0
    ranked = scores.sort(descending=True).values
    return min(COMPARED_SCORE, ranked[min(COMPARED_TOP, len(ranked)) - 1].item())


def _nearest(detections: Tensor, candidates: Candidates) -> tuple[float, float, int]:
    """Largest difference of box and score to the nearest candidate of the class, and how many have none."""
    box, score, strangers = 0.0, 0.0, 0
    for row in detections:
        boxes = (candidates.boxes - row[:4]).abs().amax(1)
        scores = (candidates.scores[:, int(row[5])] - row[4]).abs()
        distance = torch.maximum(boxes / BOX_TOLERANCE, scores / SCORE_TOLERANCE)
        best = distance.argmin() if len(distance) else None
        if best is None or not torch.isfinite(distance[best]):
            strangers += 1
        else:
            box, score = max(box, boxes[best].item()), max(score, scores[best].item())
    return box, score, strangers


def _same_class(a: Tensor, b: Tensor, agnostic: bool) -> Tensor:
    """(A, B) bool: which rows compete."""
    return torch.ones(len(a), len(b), dtype=torch.bool) if agnostic else a[:, None, 5] == b[None, :, 5]


def _missing(expected: Tensor, found: Tensor, rule: Selection, full: bool) -> int:
    """How many expected detections are neither found, nor beaten by a found one, nor at the edge of selection."""
    if not len(expected):
        return 0
    edge = rule.conf + rule.slack if rule.conf else 0.0
    if full and len(found):
        edge = max(edge, found[:, 4].min().item() + rule.slack)
    expected = expected[expected[:, 4] > edge]
    overlap = box_iou(expected[:, :4], found[:, :4]) > (TWIN_IOU if rule.iou is None else rule.iou - IOU_MARGIN)
    close = (expected[:, None, :4] - found[None, :, :4]).abs().amax(2) <= BOX_TOLERANCE  # boxes without an area
    strong = found[None, :, 4] >= expected[:, None, 4] - rule.slack
    covered = (overlap | close) & strong & _same_class(expected, found, rule.agnostic)
    return int((~covered.any(1)).sum())


def _unsuppressed(found: Tensor, rule: Selection) -> int:
    """How many detections NMS should have removed: another of the same class and a better score overlaps them."""
    if rule.iou is None:
        return 0
    overlap = box_iou(found[:, :4], found[:, :4]) > rule.iou + IOU_MARGIN
    pairs = (overlap & _same_class(found, found, rule.agnostic)).triu(1)
    return int(pairs.any(0).sum())
