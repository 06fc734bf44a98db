"""What detections are worth: every figure of a report that only asks which boxes are right.

rating = rate(truth, found)
print(rating.ap50, rating.ap_small, rating.ar[300], rating.f1)
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np

from ds2d2_yolo.report.detections import Detections, Truth
from ds2d2_yolo.report.matching import AREAS, FREE, HIT, IOUS, match, ranked, within_areas
from ds2d2_yolo.report.precision import RECALLS, best_confidence, coco_precision, precision_recall_f1, voc_average

SIZES = ("small", "medium", "large")


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Accuracy in points (0 to 100), nan without objects.

    ap...: COCO's average precision over IoU 0.50 to 0.95, at 0.50 and at 0.75; small is an area up to 32^2, medium up
    to 96^2 pixels of the original image.  ar: COCO's average recall over the same IoUs, by the number of detections
    that an image and class may have; ar_small...: with `max_det` of them.  voc07, voc12: AP50 by these rules.
    precision, recall, f1: at IoU 0.50, of what scores `Rating.confidence` or more.  curve: precision at the recalls
    0, 1 ... 100 %, at IoU 0.50.
    """

    objects: int
    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ap50_small: float
    ap50_medium: float
    ap50_large: float
    ar: dict[int, float]
    ar_small: float
    ar_medium: float
    ar_large: float
    voc07: float
    voc12: float
    precision: float
    recall: float
    f1: float
    curve: tuple[float, ...]

    def as_dict(self) -> dict:
        """Plain values, for JSON: None in place of nan, text in place of numbers as keys."""
        return _plain(asdict(self))


@dataclass(frozen=True, kw_only=True)
class ClassRating(Figures):
    """The figures of one class."""

    index: int
    name: str


@dataclass(frozen=True, kw_only=True)
class Rating(Figures):
    """The figures of a model: means over the classes with objects; precision, recall and F1 over all boxes together.

    `confidence` (0 to 1; nan without detections or objects): where that F1 is best.
    """

    images: int
    confidence: float
    classes: tuple[ClassRating, ...]


def rate(truth: Truth, found: Detections, max_det: int = 300) -> Rating:
    """Rate detections: at most `max_det` of an image and class; `ar` also has 100 and 300 of them where these are less.

    Equal to pycocotools and faster-coco-eval on the same boxes. Boxes of classes that the data do not know are left
    out; those of classes without objects are wrong ones in precision and F1, and have no average precision.
    """
    limits = sorted({min(limit, int(max_det)) for limit in (100, 300, max_det)})
    matches = match(truth, found, limits[-1])
    score, kind = found.score[matches.row], found.cls[matches.row]
    right = matches.right()
    within = matches.rank < max_det
    confidence = best_confidence(score[within], right[within], len(truth.cls))
    sure = within & (score >= confidence)

    order = np.lexsort((matches.rank, found.image[matches.row], -score, kind))  # equal scores by image, as COCO has it
    outside, inside = ~within_areas(found.box[matches.row]), within_areas(truth.box)
    parts, classes = [], []
    for index, name in sorted(truth.names.items()):
        rows = order[slice(*np.searchsorted(kind, (index, index + 1), sorter=order))]
        parts.append(_averages(matches, rows, outside, inside[truth.cls == index].sum(0), limits, int(max_det)))
        there = right[rows[sure[rows]]]
        classes.append(
            ClassRating(index=index, name=name, **_figures(parts[-1:], int(max_det)), **_at(there, parts[-1]))
        )
    whole = {**_figures(parts, int(max_det)), **_at(right[sure], *parts)}
    return Rating(images=len(truth.images), confidence=confidence, classes=tuple(classes), **whole)


@dataclass(frozen=True)
class _Averages:
    """Of one class, 0 to 1, nan without objects: objects (areas,), precision (areas, IoUs, recalls), recall (areas,
    IoUs) by the number of detections that count, and VOC's average precision."""

    objects: np.ndarray
    precision: np.ndarray
    recall: dict[int, np.ndarray]
    voc07: float
    voc12: float


def _averages(matches, rows, outside, objects, limits, max_det) -> _Averages:
    """`rows`: the class's detections by falling score, as places in `matches`; `outside`: (n, areas) of all there."""
    slot = matches.slot[rows]
    mine = slot >= 0
    state, rank = matches.state[slot[mine]], matches.rank[rows[mine]]
    total = np.where(objects > 0, objects, np.nan)[:, None]
    recall = {limit: (state[rank < limit] == HIT).sum(0) / total for limit in limits}

    within = matches.rank[rows] < max_det
    rows, state, mine = rows[within], state[rank < max_det], np.flatnonzero(mine[within])
    counts = ~outside[rows]  # what has no object counts as wrong where its own area is in the range
    own = counts[mine][:, :, None]
    change = np.where(state == FREE, own, state == HIT).astype(np.int8) - own
    position = np.cumsum(counts, 0)[mine][:, :, None] + np.cumsum(change, 0)
    precision = np.full((*state.shape[1:], len(RECALLS)), np.nan)
    for a, t in np.ndindex(state.shape[1:]):
        if objects[a]:
            precision[a, t] = coco_precision(position[state[:, a, t] == HIT, a, t], objects[a])
    right = np.zeros(len(rows), bool)
    right[mine] = matches.voc[matches.slot[rows[mine]]]
    return _Averages(objects, precision, recall, *(voc_average(right, int(objects[0]), rule) for rule in ("07", "12")))


def _figures(parts: list[_Averages], max_det: int) -> dict:
    """The figures of classes together, but for those at one confidence."""
    precision = np.stack([part.precision for part in parts])
    recall = {limit: np.stack([part.recall[limit] for part in parts]) for limit in parts[0].recall}
    figures = {"ap": _mean(precision[:, 0]), "ap50": _mean(precision[:, 0, 0]), "ap75": _mean(precision[:, 0, 5])}
    for i, size in enumerate(SIZES, 1):
        figures[f"ap_{size}"] = _mean(precision[:, i])
        figures[f"ap50_{size}"] = _mean(precision[:, i, 0])
        figures[f"ar_{size}"] = _mean(recall[max_det][:, i])
    figures["ar"] = {limit: _mean(values[:, 0]) for limit, values in recall.items()}
    figures |= {rule: _mean(np.array([getattr(part, rule) for part in parts])) for rule in ("voc07", "voc12")}
    curve = tuple(_mean(column) for column in precision[:, 0, 0].T)
    return {"objects": int(sum(part.objects[0] for part in parts)), "curve": curve, **figures}


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(100 * known.mean()) if len(known) else float("nan")


def _at(right: np.ndarray, *parts: _Averages) -> dict:
    """Precision, recall and F1 of the detections that are sure enough."""
    objects = int(sum(part.objects[0] for part in parts))
    values = precision_recall_f1(int(right.sum()), len(right), objects)
    return dict(zip(("precision", "recall", "f1"), (100 * value for value in values), strict=True))


def hits(truth: Truth, found: Detections, max_det: int = 300) -> np.ndarray:
    """Which detections are right at IoU 0.50, 0.55 ... 0.95: (10, N) bool, aligned with `found`; what is not `counted`
    is not right."""
    matches = match(truth, found, max_det, AREAS[:1])
    right = np.zeros((len(IOUS), len(found)), bool)
    for t in range(len(IOUS)):
        right[t, matches.row] = matches.right(t)
    return right


def counted(truth: Truth, found: Detections, max_det: int = 300) -> np.ndarray:
    """Which detections count at all: (N,) bool; the `max_det` surest of each image and class that the data know."""
    row, rank = ranked(truth, found)
    result = np.zeros(len(found), bool)
    result[row[rank < max_det]] = True
    return result


def _plain(value):
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
