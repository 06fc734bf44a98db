"""Precision and recall from detections in order: the curves and averages of COCO and Pascal VOC, and the best F1."""

from __future__ import annotations

import numpy as np

RECALLS = np.linspace(0, 1, 101)


def coco_precision(position: np.ndarray, objects: int) -> np.ndarray:
    """Precision (0 to 1) at the recalls 0, 0.01 ... 1 by COCO's rule: the best from there on, 0 beyond the last hit.

    `position`: places of the hits among the detections that count, by falling score, from 1 on.
    """
    result = np.zeros(len(RECALLS))
    right = np.arange(1, len(position) + 1)
    best = np.maximum.accumulate((right / (position + np.spacing(1)))[::-1])[::-1]
    place = np.searchsorted(right / objects, RECALLS)
    there = place < len(best)
    result[there] = best[place[there]]
    return result


def voc_average(right: np.ndarray, objects: int, rule: str) -> float:
    """VOC's average precision (0 to 1; nan without objects) of what is right, by falling score.

    `rule`: 07 for the mean of the best precision from eleven recalls (0, 0.1 ... 1) on, 12 for the area under it.
    """
    if not objects:
        return float("nan")
    hits = np.cumsum(right)
    precision = hits / np.arange(1, len(right) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]  # from this recall on
    if rule == "12":
        return float(best[right].sum() / objects)  # recall grows by 1 / objects where one is right
    # In whole numbers: 3 of 10 are a recall of 0.3, which 0.1 * 3 is not in floating point
    places = [np.searchsorted(10 * hits, step * objects) for step in range(11)]
    return float(np.mean([best[place] if place < len(best) else 0 for place in places]))


def best_confidence(score: np.ndarray, right: np.ndarray, objects: int) -> float:
    """The score from which on detections have the best F1; of several the highest. nan without any or objects."""
    if not len(score) or not objects:
        return float("nan")
    order = np.argsort(-score, kind="stable")
    score, hits = score[order], np.cumsum(right[order])
    last = np.r_[score[1:] != score[:-1], True]  # equal scores stand or fall together
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + objects)
    return float(score[last][np.argmax(f1[last])])


def precision_recall_f1(right: int, found: int, objects: int) -> tuple[float, float, float]:
    """Of so many right ones among the found and the objects (0 to 1; nan without objects, 0 where nothing is found)."""
    if not objects:
        return (float("nan"),) * 3
    return right / max(found, 1), right / objects, 2 * right / (found + objects)
