"""Which detections find which objects, by COCO's rule, for all images at once.

COCO's rule: in an image and class, detections choose by falling score. Each takes the object that it overlaps most
among those that are still free and overlapped by at least the threshold; objects outside of the range of areas are
taken only when none inside is to be had, and who takes one counts neither as right nor as wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ds2d2_yolo.report.detections import Detections, Truth

IOUS = np.linspace(0.5, 0.95, 10)
AREAS = ((0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10))  # all, small, medium, large; both ends belong to it
_PAIRS = 1_000_000  # of detections and objects whose overlap is computed at a time
FREE, HIT, ASIDE = 0, 1, 2


@dataclass(frozen=True)
class Matches:
    """Detections by falling score within their image and class, and what became of them.

    row: (n,) place in the `Detections`; classes that the data do not know are left out
    rank: (n,) place in image and class, from 0 on
    slot: (n,) place in the arrays below, or -1; a detection has one where it overlaps an object of its class by the
        lowest threshold or more
    state: (m, areas, IoUs) FREE, HIT or ASIDE (has an object outside of the areas)
    voc: (m,) right by VOC's rule: no better detection overlaps the object that it overlaps most, by more than 0.5
    """

    row: np.ndarray
    rank: np.ndarray
    slot: np.ndarray
    state: np.ndarray
    voc: np.ndarray

    def right(self, t: int = 0) -> np.ndarray:
        """Which of `row` are right at the threshold numbered `t`, whatever the area: (n,) bool."""
        result = np.zeros(len(self.row), bool)
        result[self.slot >= 0] = self.state[self.slot[self.slot >= 0], 0, t] == HIT
        return result


def match(truth: Truth, found: Detections, most: int, areas=AREAS) -> Matches:
    """Match the `most` surest detections of each image and class."""
    row, rank = ranked(truth, found)
    row, rank = row[rank < most], rank[rank < most]
    detection, objects, overlap = _overlapping(truth, found, row)
    candidate, starts, place = np.unique(detection, return_index=True, return_inverse=True)
    state = _chosen(place, objects, overlap, within_areas(truth.box, areas), np.minimum(IOUS, 1 - 1e-10))
    slot = np.full(len(row), -1)
    slot[candidate] = np.arange(len(candidate))
    return Matches(row, rank, slot, state, _voc(starts, place, objects, overlap))


def ranked(truth: Truth, found: Detections) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the detections of known classes, by image, class and falling score; and the place of each in its image
    and class."""
    order = np.lexsort((-found.score, found.cls, found.image))
    order = order[np.isin(found.cls[order], list(truth.names))]
    image, cls = found.image[order], found.cls[order]
    first = np.r_[True, (image[1:] != image[:-1]) | (cls[1:] != cls[:-1])][: len(order)]
    return order, np.arange(len(order)) - np.flatnonzero(first)[np.cumsum(first) - 1]


def within_areas(box: np.ndarray, areas=AREAS) -> np.ndarray:
    """Which of (N, 4) xyxy boxes lie in which range of areas: (N, areas)."""
    box = np.asarray(box, np.float64).reshape(-1, 4)
    area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
    return np.stack([(area >= low) & (area <= high) for low, high in areas], 1)


def _overlapping(truth, found, row):
    """Pairs of a detection (place in `row`) and an object of its image and class with an IoU of 0.5 or more, by
    detection."""
    ours, theirs = _extents(found.box[row]), _extents(truth.box)
    order, begin, end = _neighbours(truth, found, row, ours, theirs)
    parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    ends = np.cumsum(end - begin)
    at = 0
    while at < len(row):
        done = ends[at - 1] if at else 0
        stop = max(at + 1, int(np.searchsorted(ends, done + _PAIRS, side="right")))
        detection = np.repeat(np.arange(at, stop), (end - begin)[at:stop])
        nth = np.arange(len(detection)) - (ends - (end - begin))[detection] + done
        objects = order[begin[detection] + nth]
        overlap = _iou(ours[:, detection], theirs[:, objects])
        near = overlap >= IOUS[0]
        parts.append((detection[near], objects[near], overlap[near]))
        at = stop
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def _neighbours(truth, found, row, ours, theirs):
    """An order of the objects, and for each detection from where to where in it those are that it can overlap by half.

    Half an overlap has an object whose left edge is no further left than the detection's width, and no further right
    than half of that. The objects stand by image and class and then by that edge, all on one line.
    """
    classes = max([*truth.names, *truth.cls.tolist(), 0]) + 1
    groups, group = np.unique(truth.image.astype(np.int64) * classes + truth.cls, return_inverse=True)
    wanted = found.image[row].astype(np.int64) * classes + found.cls[row]
    left, width = ours[0], ours[2]
    low, high = (theirs[0].min() - 1, theirs[0].max() + 1) if len(group) else (0, 1)
    place = group * (high - low) + theirs[0] - low
    order = np.argsort(place, kind="stable")
    nth = np.searchsorted(groups, wanted)
    known = nth < len(groups)
    known[known] = groups[nth[known]] == wanted[known]
    slack = 1e-3 * (1 + np.abs(width))  # of rounding: the line is long
    edges = (left - width - slack, left + width / 2 + slack)
    begin, end = (np.searchsorted(place[order], nth * (high - low) + np.clip(x, low, high) - low) for x in edges)
    return order, begin, np.where(known, np.maximum(begin, end), begin)


def _extents(box):
    """x, y, w, h, x + w, y + h; rounded as in pycocotools, so that an IoU at a threshold falls to the same side."""
    x, y, right, bottom = np.asarray(box, np.float64).reshape(-1, 4).T
    w, h = right - x, bottom - y
    return np.stack([x, y, w, h, x + w, y + h])


def _iou(a, b):
    w = np.minimum(a[4], b[4]) - np.maximum(a[0], b[0])
    h = np.minimum(a[5], b[5]) - np.maximum(a[1], b[1])
    common = np.where((w > 0) & (h > 0), w * h, 0)
    union = a[2] * a[3] + b[2] * b[3] - common
    return np.divide(common, union, out=np.zeros_like(common), where=common > 0)


def _chosen(detection, objects, overlap, inside, ious):
    """State of each detection: (detections, areas, IoUs).

    `detection` counts the candidates by falling score within image and class. One may choose as soon as all better ones
    that overlap an object of its own have chosen; so in each round very many do at the same time.
    """
    state = np.zeros((detection[-1] + 1 if len(detection) else 0, inside.shape[1], len(ious)), np.uint8)
    taken = np.zeros((*inside.shape, len(ious)), bool)
    # Pairs by rising preference; of two objects that are overlapped alike, COCO's rule takes the later
    orders = [np.lexsort((objects, overlap, within[objects])) for within in inside.T]
    wishes = [np.empty(len(order), np.int64) for order in orders]
    for wish, order in zip(wishes, orders, strict=True):
        wish[order] = np.arange(1, len(order) + 1)
    for pairs in _rounds(detection, objects, len(inside)):
        for t, iou in enumerate(ious):
            pairs = pairs[overlap[pairs] >= iou]
            for a, (wish, order) in enumerate(zip(wishes, orders, strict=True)):
                free = np.where(taken[objects[pairs], a, t], 0, wish[pairs])
                best = np.maximum.reduceat(free, _starts(detection[pairs])) if len(pairs) else free
                won = order[best[best > 0] - 1]
                taken[objects[won], a, t] = True
                state[detection[won], a, t] = np.where(inside[objects[won], a], HIT, ASIDE)
    return state


def _rounds(detection, objects, count):
    """Split the pairs into rounds: in each, no object is in pairs of two detections."""
    first = np.empty(count, np.int64)
    left = np.arange(len(detection))
    while len(left):
        those, wanted = detection[left], objects[left]
        first[wanted[::-1]] = those[::-1]  # the best detection that is left for each object
        starts = _starts(those)
        ready = np.logical_and.reduceat(first[wanted] == those, starts)
        ready = np.repeat(ready, np.diff(np.r_[starts, len(left)]))
        yield left[ready]
        left = left[~ready]


def _starts(values):
    """Where runs of equal values begin."""
    return np.flatnonzero(np.r_[True, values[1:] != values[:-1]]) if len(values) else np.zeros(0, np.int64)


def _voc(starts, detection, objects, overlap):
    """Who is right by VOC's rule; of two objects that are overlapped alike, it takes the first."""
    right = np.zeros(len(starts), bool)
    order = np.lexsort((-objects, overlap, detection))
    best = order[np.r_[starts[1:], len(order)] - 1] if len(starts) else starts
    best = best[overlap[best] > 0.5]
    right[detection[best[np.unique(objects[best], return_index=True)[1]]]] = True
    return right
