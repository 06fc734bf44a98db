"""Whether one model's AP differs from another's by more than the luck of the images: a paired bootstrap over images.

Every draw takes as many images as there are, with replacement, the same ones for both models, and rates them as COCO
does. Tiles of one scene share its light, its ground and some objects: there whole scenes are drawn. The interval holds
what the choice of images explains; how far two trainings of one recipe lie apart is in `seeds.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from ds2d2_yolo.report.detections import Detections, Truth
from ds2d2_yolo.report.rating import counted, hits

RECALLS = np.linspace(0, 1, 101)
MIN_IMAGES = 10  # or scenes, with objects; resampling fewer gives intervals that are far too narrow
AHEAD, BEHIND, NOISE, UNKNOWN = "ahead", "behind", "within noise", "too few images"


@dataclass(frozen=True)
class Judged:
    """One model's detections as AP sees them: `image`, `cls` and `score` (N,), `hit` (T, N) bool: true positive at each
    of T IoU thresholds, the first of them .50."""

    image: np.ndarray
    cls: np.ndarray
    score: np.ndarray
    hit: np.ndarray


def judge(truth: Truth, found: Detections, max_det: int = 300) -> Judged:
    """Which of the detections that count, at most `max_det` of an image and class, are right."""
    keep = counted(truth, found, max_det)
    return Judged(found.image[keep], found.cls[keep], found.score[keep], hits(truth, found, max_det)[:, keep])


@dataclass(frozen=True)
class Interval:
    """A figure of two models in points, the difference a - b, and the interval that holds it at the level asked for.

    `verdict` is what that says of a: "ahead", "behind", "within noise" (the interval contains 0) or "too few images".
    """

    a: float
    b: float
    difference: float
    low: float
    high: float
    verdict: str


@dataclass(frozen=True)
class Bootstrap:
    """What `bootstrap` found: AP and AP50 over all classes, and AP by class index. The classes' intervals hold at the
    level all together: none of many stands out by chance."""

    ap: Interval
    ap50: Interval
    classes: dict[int, Interval]
    images: int
    draws: int
    level: float

    def as_dict(self) -> dict:
        """Plain values for JSON, None for nan."""
        return _plain(asdict(self))


def bootstrap(
    truth: Truth,
    a: Judged | Sequence[Judged],
    b: Judged | Sequence[Judged],
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    progress: Callable[[int], None] | None = None,
    scenes: np.ndarray | None = None,
) -> Bootstrap:
    """Interval of the difference in AP between a and b over the images of `truth`.

    Args:
        truth: The objects.
        a: What a model found, or models that differ by their seed: their AP is averaged within a draw.
        b: What it is compared with.
        draws: How often images are drawn.
        seed: Of the drawing; the same seed gives the same interval.
        level: Share of the draws inside the interval.
        progress: Called with the number of draws done.
        scenes: (images,) the number of the scene, from 0 on, that an image is a tile of; None: each is one of its own.
    """
    scenes = np.arange(len(truth.images)) if scenes is None else scenes
    sides = [[side] if isinstance(side, Judged) else list(side) for side in (a, b)]
    classes = np.unique(truth.cls)
    models = [[Ranking(truth, judged) for judged in side] for side in sides]
    objects = Objects(truth, scenes)

    def rate(weights):
        """(2, 2, K): AP and AP50 in points, of both sides, by class."""
        counts = objects.count(weights)
        return np.stack([np.mean([_ap(model, weights, counts) for model in side], axis=0) for side in models])

    number, rng = int(scenes.max(initial=-1)) + 1, np.random.default_rng(seed)
    point, drawn = rate(np.ones(len(scenes))), np.empty((draws, 2, len(classes) + 1))
    for i in range(draws):
        weights = np.bincount(rng.integers(0, number, number), minlength=number).astype(float)[scenes]
        drawn[i] = _differences(rate(weights))
        if progress:
            progress(i + 1)
    there = [len(np.unique(scenes[truth.image])), *objects.scenes]
    point = _with_mean(point)
    ap, ap50 = (_interval(point[:, m, 0], drawn[:, m, 0], there[0], level) for m in (0, 1))
    by_class = dict(zip(classes.tolist(), _together(point[:, 0, 1:], drawn[:, 0, 1:], there[1:], level), strict=True))
    return Bootstrap(ap, ap50, by_class, len(scenes), draws, level)


def _ap(model, weights, counts):
    precision = model.average_precision(weights, counts)
    return 100 * np.stack([precision.mean(0), precision[0]])


def _with_mean(rates):
    """(..., K) by class -> (..., 1 + K) with the mean over the classes that have objects in front."""
    there = ~np.isnan(rates)
    total, number = np.where(there, rates, 0).sum(-1), there.sum(-1)
    mean = np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)
    return np.concatenate([mean[..., None], rates], axis=-1)


def _differences(rates):
    both = _with_mean(rates)
    return both[0] - both[1]


def _interval(point, drawn, images, level) -> Interval:
    a, b = (float(v) for v in point)
    known = drawn[~np.isnan(drawn)]  # a class may lose all its objects in a draw
    if images < MIN_IMAGES or not len(known):
        return Interval(a, b, a - b, float("nan"), float("nan"), UNKNOWN)
    tail = 50 * (1 - level)
    low, high = (float(v) for v in np.percentile(known, [tail, 100 - tail]))
    return Interval(a, b, a - b, low, high, AHEAD if low > 0 else BEHIND if high < 0 else NOISE)


def _together(point, drawn, images, level) -> list[Interval]:
    """Intervals (K,) that hold at the level all at once, the bootstrap's max-t band: in that share of the draws no
    class is more of its deviations away. `point` (2, K), `drawn` (draws, K)."""
    difference = point[0] - point[1]
    enough = (np.asarray(images) >= MIN_IMAGES) & ~np.isnan(drawn).all(0)
    deviation = np.full(len(difference), np.nan)
    deviation[enough] = np.nanstd(drawn[:, enough], axis=0)
    varies = deviation > 0
    width = 0.0
    if varies.any():
        scaled = np.abs(drawn[:, varies] - np.nanmean(drawn[:, varies], axis=0)) / deviation[varies]
        width = float(np.nanpercentile(np.nanmax(scaled, axis=1), 100 * level))
    low, high = difference - width * deviation, difference + width * deviation
    verdicts = np.select([~enough, low > 0, high < 0], [UNKNOWN, AHEAD, BEHIND], NOISE)
    columns = (point[0], point[1], difference, low, high)
    return [Interval(*map(float, row), str(v)) for *row, v in zip(*columns, verdicts, strict=True)]


def _plain(value):
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return None if isinstance(value, float) and np.isnan(value) else value


class Objects:
    """How many objects a class has (K,), for any weights of the images; `scenes` (K,) is how many scenes hold some."""

    def __init__(self, truth: Truth, scenes: np.ndarray):
        self._kinds, kind = np.unique(truth.cls, return_inverse=True)
        cells, self._number = np.unique(kind * len(truth.images) + truth.image, return_counts=True)
        self._kind, self._image = np.divmod(cells, max(len(truth.images), 1))
        count = int(scenes.max(initial=0)) + 1
        held = np.unique(self._kind * count + scenes[self._image])
        self.scenes = np.bincount(held // count, minlength=len(self._kinds)).tolist()

    def count(self, weights: np.ndarray) -> np.ndarray:
        return np.bincount(self._kind, self._number * weights[self._image], len(self._kinds))


class Ranking:
    """One model's detections laid out so that AP under weights of the images takes a few passes over flat arrays.

    An image of weight w counts as w copies of it: their detections share a score, so w steps of a curve are one, and
    its envelope at any recall is the same (equal scores of a class within one image apart, whose order among the copies
    nothing prescribes). Precision matters at the true positives only. These lie one after the other
    by segment (IoU threshold, then class) and within it by falling score; all detections lie by class.
    """

    def __init__(self, truth: Truth, judged: Judged):
        kinds = np.unique(truth.cls)
        rows = np.flatnonzero(np.isin(judged.cls, kinds))
        image, kind = judged.image[rows], np.searchsorted(kinds, judged.cls[rows])
        # As COCO: equal scores by image, and within one as they came
        order = np.lexsort((image, -judged.score[rows], kind))
        hit, kind = judged.hit[:, rows[order]], kind[order]
        self._kinds, self._thresholds = len(kinds), len(hit)
        self._image = image[order].astype(np.intp)  # what numpy indexes by; it would convert others in every draw
        self._start = np.searchsorted(kind, np.arange(len(kinds)))  # of each class among all detections
        threshold, self._place = np.nonzero(hit)
        self._segment = threshold * len(kinds) + kind[self._place]
        self._kind, self._hit_image = kind[self._place], self._image[self._place]
        self._rank, self._found = np.zeros(len(order) + 1), np.zeros(len(self._place) + 1)
        self._bounds = np.searchsorted(self._segment, np.arange(len(hit) * len(kinds) + 1))

    def average_precision(self, weights: np.ndarray, objects: np.ndarray) -> np.ndarray:
        """COCO's AP, 0 to 1, (thresholds, classes), nan without objects; `weights` (images,) are whole numbers and
        `objects` (classes,) the sums of objects under them."""
        rank, found = _running(weights, self._image, self._rank), _running(weights, self._hit_image, self._found)
        before = found[self._bounds[:-1]]  # the segment's first
        best = self._envelope(rank, found[1:] - before[self._segment])
        wanted = before[:, None] + np.tile(_needed(objects), (self._thresholds, 1))
        reached = wanted <= found[self._bounds[1:], None]
        result = np.zeros(wanted.shape)
        result[reached] = best[np.searchsorted(found[1:], wanted[reached])]
        means = result.mean(1).reshape(self._thresholds, self._kinds)
        return np.where(objects > 0, means, np.nan)

    def _envelope(self, rank, found):
        """At every true positive the best precision from its recall on."""
        before = (rank[self._start])[self._kind]
        precision = found / np.maximum(rank[1:][self._place] - before, 1)
        # Later segments must not reach into earlier ones, so each lies above all that follow
        lift = 2.0 * (len(self._bounds) - self._segment)
        return np.maximum.accumulate((precision + lift)[::-1])[::-1] - lift


def _running(weights, image, out):
    """0 and the running sums of the images' weights, in `out`, which is used again: half the time of new arrays."""
    out[0] = 0
    np.take(weights, image, out=out[1:], mode="clip")
    return np.cumsum(out, out=out)


def _needed(objects: np.ndarray) -> np.ndarray:
    """(K, 101) true positives for a recall, by the very comparison of floats that COCO makes, which at recall 0.57 asks
    for 58 of 100; one at least, for the curve starts with the first."""
    objects = np.maximum(objects, 1)[:, None]
    needed = np.ceil(RECALLS * objects)
    needed -= (needed - 1) / objects >= RECALLS
    needed += needed / objects < RECALLS
    return np.maximum(needed, 1)
