"""The images on which a distilled student and its plain baseline differ most, with right, wrong and missed boxes.

shown = illustrate(truth, {"baseline": b, "student": c}, {"baseline": 0.3, "student": 0.35})
"""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from ultralytics.utils import LOGGER
from ultralytics.utils.patches import imread

from ds2d2_yolo.report.detections import Detections, Truth

ROLES = ("teacher", "baseline", "student")
CONFIDENCE = 0.25  # where a model has no confidence of best F1, as on a split without objects
PICTURE = 640  # pixels of a picture's longer side, at most
PICTURE_BYTES = 150_000
VISIBLE = 1 / 20  # of a picture's side: what an object needs to be recognised in a panel 300 to 400 pixels wide
SMALLEST_CROP = 240


@dataclass(frozen=True)
class Marks:
    """One model's detections from a confidence on, judged: `kept` and `right` are (N,) aligned with the detections,
    `met` is (objects,) aligned with the truth. A detection is right if it has the class of an object that no surer
    detection took and overlaps it with IoU 0.5 or more."""

    kept: np.ndarray
    right: np.ndarray
    met: np.ndarray


@dataclass(frozen=True)
class Box:
    """A box in pixels of the picture's region (xyxy) and what it says: class, and confidence if it was detected."""

    xyxy: tuple[float, float, float, float]
    text: str


@dataclass(frozen=True)
class Panel:
    """What one model does in an example. The counts are of the whole image, the boxes those in sight."""

    role: str
    name: str
    counts: dict[str, int]
    boxes: dict[str, tuple[Box, ...]]


@dataclass(frozen=True)
class Example:
    """An image, or the part of it (`region`, xyxy pixels) where the models differ, once for all panels.

    `shape` is the image's height and width; `fewer` how many errors the student makes less than the baseline in the
    whole image (negative: more); `picture` a data URI; `file` its path within the folder that holds all images.
    """

    file: str
    shape: tuple[int, int]
    region: tuple[int, int, int, int]
    fewer: int
    picture: str
    panels: tuple[Panel, ...]

    @property
    def cropped(self) -> bool:
        """Whether only a part of the image is shown."""
        return (self.region[2] - self.region[0], self.region[3] - self.region[1]) != (self.shape[1], self.shape[0])


@dataclass(frozen=True)
class Illustration:
    """Examples, and on how many images of the split the student makes fewer, more and as many errors.

    `student` and `baseline` are their names; `choice` says of how many they are the first.
    """

    examples: tuple[Example, ...] = ()
    fewer: int = 0
    more: int = 0
    equal: int = 0
    student: str = "student"
    baseline: str = "baseline"
    choice: str = ""


def mark(truth: Truth, found: Detections, conf: float | None) -> Marks:
    """Judge the detections of confidence `conf` and more at IoU 0.5; COCO's greedy matching, one object a detection."""
    conf = CONFIDENCE if conf is None or math.isnan(conf) else conf
    kept = (found.score >= np.float32(conf)) & np.isin(found.cls, list(truth.names))  # others are not rated either
    right, met = np.zeros(len(found), bool), np.zeros(len(truth.cls), bool)
    chosen = np.flatnonzero(kept)
    chosen = chosen[np.argsort(-found.score[chosen], kind="stable")]
    objects = _by_key(truth.image, truth.cls)
    for key, rows in _by_key(found.image[chosen], found.cls[chosen]).items():
        if key in objects:
            rows, candidates = chosen[rows], objects[key]
            overlap = _iou(found.box[rows], truth.box[candidates])
            for row, ious in zip(rows, overlap, strict=True):
                best = ious.argmax()
                if ious[best] >= 0.5:
                    right[row], met[candidates[best]] = True, True
                    overlap[:, best] = -1
    return Marks(kept, right, met)


def errors(truth: Truth, found: Detections, marks: Marks) -> np.ndarray:
    """(images,) objects missed plus wrong detections."""
    images = len(truth.images)
    missed = np.bincount(np.asarray(truth.image)[~marks.met], minlength=images)
    return missed + np.bincount(found.image[marks.kept & ~marks.right], minlength=images)


def differences(
    truth: Truth, found: Mapping[str, Detections], conf: Mapping[str, float | None], n: int
) -> list[tuple[int, int]]:
    """The n images where "student" and "baseline" differ most: (place of the image, errors of the baseline minus those
    of the student), largest difference first, whichever of the two is better.

    `conf` is each model's own confidence, such as that of its best F1. Among equals, images with more objects that
    only one of the two finds come first; images without any difference are left out.
    """
    return _differences(truth, found, {role: mark(truth, found[role], conf.get(role)) for role in ROLES[1:]})[:n]


def illustrate(
    truth: Truth,
    found: Mapping[str, Detections],
    conf: Mapping[str, float | None],
    n: int = 6,
    names: Mapping[str, str] | None = None,
) -> Illustration:
    """Up to n examples of where "student" and "baseline" differ most, for those of the roles that `found` holds.

    An image that cannot be read any more is named and passed over. Nothing is shown without a student or a baseline.
    """
    if not {"baseline", "student"} <= set(found):
        return Illustration()
    roles = [role for role in ROLES if role in found]
    marks = {role: mark(truth, found[role], conf.get(role)) for role in roles}
    ranked, names, examples = _differences(truth, found, marks), names or {}, []
    fewer = errors(truth, found["baseline"], marks["baseline"]) - errors(truth, found["student"], marks["student"])
    for image, better in ranked[: 5 * n]:  # where a whole folder is gone, not all of it is gone through
        if len(examples) == n:
            break
        pixels = _read(truth, image)
        if pixels is None:
            LOGGER.warning(f"'{truth.images[image]}' cannot be read; it is left out of the examples")
            continue
        region = _region(_disputed(truth, found, marks, image), *pixels.shape[:2])
        panels = (_panel(truth, found[r], marks[r], image, region, r, names.get(r, r)) for r in roles)
        size = tuple(int(v) for v in pixels.shape[:2])
        file = _named(truth.images, image)
        examples.append(Example(file, size, region, better, _encode(pixels, region), tuple(panels)))
    counts = (int(part.sum()) for part in (fewer > 0, fewer < 0, fewer == 0))
    return Illustration(tuple(examples), *counts, *(names.get(role, role) for role in ("student", "baseline")))


def _differences(truth, found, marks):
    base, student = ((found[role], marks[role]) for role in ROLES[1:])
    score = errors(truth, *base) - errors(truth, *student)
    disputed = np.bincount(np.asarray(truth.image)[base[1].met != student[1].met], minlength=len(truth.images))
    order = np.lexsort((np.arange(len(score)), -disputed, -abs(score)))
    return [(int(i), int(score[i])) for i in order if score[i] or disputed[i]]


def _by_key(image, cls):
    """(image, class) -> places, in the order given."""
    image, cls = np.asarray(image, np.int64), np.asarray(cls, np.int64)
    order = np.lexsort((cls, image))
    keys = np.stack((image[order], cls[order]), 1)
    starts = np.flatnonzero(np.r_[True, (keys[1:] != keys[:-1]).any(1)]) if len(order) else []
    return dict(zip(map(tuple, keys[starts].tolist()), np.split(order, starts[1:]), strict=True)) if len(order) else {}


def _iou(a, b):
    """(A, B) of two sets of xyxy boxes."""
    a, b = np.asarray(a, np.float64)[:, None], np.asarray(b, np.float64)[None]
    common = (np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])).clip(0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - common
    return common / np.maximum(union, 1e-12)


def _named(files, image):
    """A file by its path within the folder that holds all of them."""
    folders = {os.path.dirname(os.path.abspath(file)) for file in files}
    try:
        return os.path.relpath(files[image], os.path.commonpath(folders))
    except ValueError:  # on several drives
        return os.path.basename(files[image])


def _read(truth, image):
    """Three channels of 8 bits at the size that the boxes are given for, or None."""
    pixels = imread(truth.images[image])
    if pixels is None or pixels.dtype != np.uint8:
        return None
    height, width = (int(v) for v in truth.shapes[image])
    pixels = pixels[..., :3] if pixels.shape[2] >= 3 else np.repeat(pixels[..., :1], 3, axis=2)
    return pixels if pixels.shape[:2] == (height, width) else None


def _disputed(truth, found, marks, image):
    """(K, 4) objects that only one of the two finds, and wrong detections that the other does not make."""
    base, student = marks["baseline"], marks["student"]
    boxes = [np.asarray(truth.box)[(np.asarray(truth.image) == image) & (base.met != student.met)]]
    wrong = {}
    for role in ROLES[1:]:
        wrong[role] = found[role].box[(found[role].image == image) & marks[role].kept & ~marks[role].right]
    for own, other in (ROLES[1:], ROLES[:0:-1]):
        shared = (_iou(wrong[own], wrong[other]) >= 0.5).any(1)
        boxes.append(wrong[own][~shared])
    return np.concatenate(boxes).reshape(-1, 4)


def _region(boxes, height, width):
    """The part of an image to show: as wide as the boxes can still be seen, where most of them lie (xyxy)."""
    whole = (0, 0, width, height)
    if not len(boxes):
        return whole
    side = max(SMALLEST_CROP, float(np.median((boxes[:, 2:] - boxes[:, :2]).max(1))) / VISIBLE)
    if side * 1.25 >= max(height, width):
        return whole
    size = np.minimum((round(side), round(side)), (width, height))
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    starts = (centres[:500] - size / 2).clip(0, (width, height) - size)
    inside = (boxes[None, :, :2] >= starts[:, None]).all(2) & (boxes[None, :, 2:] <= starts[:, None] + size).all(2)
    chosen = boxes[inside[inside.sum(1).argmax()]]
    middle = (chosen[:, :2].min(0) + chosen[:, 2:].max(0)) / 2 if len(chosen) else centres[0]
    x, y = np.round((middle - size / 2).clip(0, (width, height) - size)).astype(int).tolist()
    return x, y, x + int(size[0]), y + int(size[1])


def _panel(truth, found, marks, image, region, role, name):
    here, wrong = np.asarray(truth.image) == image, marks.kept & ~marks.right
    kinds = {
        "right": (found, (found.image == image) & marks.right),
        "wrong": (found, (found.image == image) & wrong),
        "missed": (truth, here & ~marks.met),
    }
    boxes = {kind: tuple(_in_sight(of, chosen, region, truth.names)) for kind, (of, chosen) in kinds.items()}
    return Panel(role, str(name), {kind: int(chosen.sum()) for kind, (_, chosen) in kinds.items()}, boxes)


def _in_sight(of, chosen, region, names):
    x1, y1, x2, y2 = region
    for i in np.flatnonzero(chosen):
        box = np.asarray(of.box[i], np.float64)
        if box[0] < x2 and box[1] < y2 and box[2] > x1 and box[3] > y1:
            text = str(names.get(int(of.cls[i]), int(of.cls[i])))
            text += f" {of.score[i]:.2f}" if isinstance(of, Detections) else ""
            yield Box(tuple((box - (x1, y1, x1, y1)).round(1).tolist()), text)


def _encode(pixels, region):
    """JPEG as a data URI, its longer side at most `PICTURE` pixels."""
    x1, y1, x2, y2 = region
    part = pixels[y1:y2, x1:x2]
    scale = min(1.0, PICTURE / max(part.shape[:2]))
    if scale < 1:
        size = (max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale)))
        part = cv2.resize(part, size, interpolation=cv2.INTER_AREA)
    for quality in (88, 75, 60, 40):
        data = cv2.imencode(".jpg", np.ascontiguousarray(part), [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
        if len(data) <= PICTURE_BYTES:
            break
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
