"""The conversion of one image: linked or cut into tiles, with its labels."""

from __future__ import annotations

import errno
import hashlib
import os
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ds2d2_yolo.datasets.as_shown import as_shown
from ds2d2_yolo.datasets.objects import Job, Objects
from ds2d2_yolo.datasets.pictures import Budget, Picture, decode, inspect
from ds2d2_yolo.datasets.tiles import Tiling, areas, bounds, cut, rectangles

SIZES = (32**2, 96**2)  # pixels of area below which an object is small, medium (COCO)
_SMALLEST = 1e-3  # pixels an edge; below that a box has no area
_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 1]  # a tenth larger than at 6, and three times as fast
_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 95]


@dataclass(frozen=True)
class Options:
    """What is made of an image.

    Attributes:
        rotated: Write four corners an object instead of an upright box.
        difficult: Name objects flagged as difficult in the labels.
        tiling: How images are cut; None: not at all.
    """

    rotated: bool = False
    difficult: bool = True
    tiling: Tiling | None = None


def convert_one(job: Job, dest: Path, options: Options, budget: Budget) -> dict:
    """Write an image and its labels below ``dest``.

    Returns:
        What the tables need, as JSON has it: ``images`` and ``boxes`` written, ``counts`` of objects as
        ``[class, size (0 to 2), number]``, ``problems``, the annotation's ``state``, and of tiled images
        ``tiles`` and ``objects``, difficult ones among them whatever ``options`` say: they are the ground truth of
        whole images.

    Raises:
        OSError: Something cannot be written.
        UserError: The image or its annotation cannot be read now, whatever is in it.
    """
    record = {"split": job.split, "image": job.stem, "images": 0, "boxes": 0, "counts": [], "problems": {}}
    try:
        picture = inspect(job.image)
        objects = job.objects()
        record["state"] = objects.state()
        objects = clean(as_shown(objects, job.image, picture), picture, options)
        record["problems"] = objects.problems
        named = objects if options.difficult else objects.chosen(~objects.difficult)
        if len(named) < len(objects):
            record["problems"]["difficult"] = len(objects) - len(named)
        record["counts"] = _counts(named)
        if picture.plain and picture.kind != "RGB":
            record["problems"][f"image of mode {picture.kind} (kept, and read as RGB)"] = 1
        if options.tiling is None:
            with budget.hold(0 if picture.plain else picture.memory):
                _whole(job, dest, picture, named, options, record)
        else:
            with budget.hold(picture.memory):
                _tiled(job, dest, _pixels(job, picture), named, options, record)
            record["objects"] = _rows(objects)
            if not picture.plain:
                record["problems"][_converted(picture)] = 1
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.ENAMETOOLONG:
            raise
        reason = "file name too long" if isinstance(error, OSError) else str(error) or "unreadable"
        record |= {"problems": {reason: 1}, "images": 0, "boxes": 0, "counts": [], "skipped": True}
    return record


def clean(objects: Objects, picture: Picture, options: Options) -> Objects:
    """Return what lies within the image; the rest is counted in ``problems``.

    Of what reaches over the edge the inner part is kept, by which detections, which end there, are rated. Tiles are cut
    by the shape as annotated.
    """
    problems = Counter(objects.problems)
    if objects.size and objects.size != (picture.width, picture.height):
        problems["size in the annotation is not the image's (the image's is taken)"] += 1
    edges = np.ptp(objects.corners, axis=1) if len(objects) else np.zeros((0, 2))
    flat = (edges < _SMALLEST).any(1) | (areas(objects.corners) < _SMALLEST**2)
    objects = _without(objects, flat, "box of no area", problems)
    inside, corners = _inside(objects.corners, picture, options.rotated)
    lost = np.ones(len(objects), bool)
    lost[inside] = False
    left = _without(objects, lost, "box outside the image", problems)
    shape = left.corners if options.rotated else rectangles(bounds(left.corners))
    reaching = (np.abs(corners - shape) > 0.5).any((1, 2)) if len(left) else np.zeros(0, bool)
    if reaching.any():
        problems["box over the image's edge (its inner part is kept)"] += int(reaching.sum())
    if options.tiling:  # merged detections may be rotated, whatever the labels are
        corners = np.where(_across(bounds(left.full), picture)[:, None, None], corners, left.full)
    left.corners = corners
    seen, again = set(), np.zeros(len(left), bool)
    kinds, places = left.classes.tolist(), left.full if options.tiling else corners
    places = places.reshape(-1, 8).round(3).tolist()
    for i in np.argsort(left.difficult, kind="stable"):  # of two that differ in the flag the one that counts stays
        again[i] = (key := (kinds[i], *places[i])) in seen
        seen.add(key)
    left = _without(left, again, "the same box twice", problems)
    left.problems = dict(problems)
    return left


def _inside(corners: np.ndarray, picture: Picture, rotated: bool) -> tuple[np.ndarray, np.ndarray]:
    """Which objects reach into the image, and the corners of their parts there."""
    boxes = bounds(corners)
    if not _across(boxes, picture).any():  # nearly always, and then nothing is to be cut
        return np.arange(len(corners)), corners if rotated else rectangles(boxes)
    return cut(corners, np.array([[0, 0, picture.width, picture.height]], float), 0.0, rotated)[0][0]


def _across(boxes: np.ndarray, picture: Picture) -> np.ndarray:
    """Which boxes ``(n, 4)`` are not all within the image."""
    return (boxes[:, :2] < 0).any(1) | (boxes[:, 2:] > (picture.width, picture.height)).any(1)


def _without(objects: Objects, which: np.ndarray, reason: str, problems: Counter) -> Objects:
    if which.any():
        problems[reason] += int(which.sum())
    return objects.chosen(~which)


def _counts(objects: Objects) -> list[list[int]]:
    boxes = bounds(objects.corners)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    pairs = Counter(zip(objects.classes.tolist(), np.digitize(areas, SIZES).tolist(), strict=True))
    return [[kind, size, number] for (kind, size), number in sorted(pairs.items())]


def label_text(classes: np.ndarray, corners: np.ndarray, width: float, height: float, rotated: bool) -> str:
    """Return YOLO's lines: class, then x centre, y centre, width, height, or four corners; relative to the image."""
    shares = (corners / (width, height)).clip(0, 1)
    if rotated:
        values = shares.reshape(-1, 8)
    else:
        low, high = shares.min(1), shares.max(1)
        values = np.concatenate([(low + high) / 2, high - low], 1) if len(corners) else np.zeros((0, 4))
    rows = zip(classes.tolist(), values.tolist(), strict=True)
    return "".join(f"{kind} {' '.join(f'{v:.7g}' for v in row)}\n" for kind, row in rows)


def _whole(job, dest, picture, objects, options, record) -> None:
    target = dest / "images" / job.split / (job.stem + job.image.path.suffix)
    if picture.plain:
        job.image.place(target)
    else:  # Ultralytics would fail on it, or read bands as pages
        target = target.with_suffix(".png")
        _write(target, _pixels(job, picture), _PNG)
        record["problems"][_converted(picture)] = 1
    text = label_text(objects.classes, objects.corners, picture.width, picture.height, options.rotated)
    (dest / "labels" / job.split / f"{job.stem}.txt").write_text(text)
    record |= {"images": 1, "boxes": len(objects)}


def _pixels(job: Job, picture: Picture) -> np.ndarray:
    image = decode(job.image, picture)
    if image.shape[1::-1] != (picture.width, picture.height):  # by which the boxes were judged
        raise ValueError("unreadable image: its pixels are not of the size that its head says")
    return image


def _converted(picture: Picture) -> str:
    return f"image of mode {picture.kind} (written as 8-bit RGB)"


def _tiled(job, dest, image, objects, options, record) -> None:
    tiling, (height, width) = options.tiling, image.shape[:2]
    windows = tiling.windows(width, height)
    pieces, best = cut(objects.full, np.array([w for _, w in windows]), tiling.keep, options.rotated, (width, height))
    if (torn := int((best < min(tiling.keep, 1 - 1e-9)).sum())) > 0:
        record["problems"]["object that no tile holds enough of (named where most of it is)"] = torn
    rows, names = [], [f"{job.stem}__{scale:g}__{x1}___{y1}" for scale, (x1, y1, _, _) in windows]
    with suppress(FileNotFoundError):  # a name too long fails for all tiles, or for none
        os.stat(dest / "images" / job.split / f"{max(names, key=len)}.{tiling.format}")
    for name, (scale, window), (indices, corners) in zip(names, windows, pieces, strict=True):
        x1, y1, x2, y2 = window
        if not len(indices) and _draw(name) >= tiling.empty:
            continue
        size = tiling.file_size(scale, window)
        tile = image[y1:y2, x1:x2]
        if tile.shape[1::-1] != size:
            tile = cv2.resize(tile, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        target = dest / "images" / job.split / f"{name}.{tiling.format}"
        _write(target, tile, _PNG if tiling.format == "png" else _JPEG)
        text = label_text(objects.classes[indices], corners - (x1, y1), x2 - x1, y2 - y1, options.rotated)
        (dest / "labels" / job.split / f"{name}.txt").write_text(text)
        rows.append([name, x1, y1, x2 - x1, y2 - y1, *size, width, height])
        record["boxes"] += len(indices)
    record["images"], record["tiles"] = len(rows), rows


def _rows(objects: Objects) -> list[list]:
    """Class, whether it is difficult, and corners."""
    flat = objects.corners.reshape(-1, 8).round(3).tolist()
    flags = zip(objects.classes.tolist(), objects.difficult.astype(int).tolist(), flat, strict=True)
    return [[kind, hard, *row] for kind, hard, row in flags]


def _draw(name: str) -> float:
    """A number from 0 to 1 that looks random and is the tile's own."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48


def _write(target: Path, image: np.ndarray, how: list[int]) -> None:
    written, data = cv2.imencode(target.suffix, image, how)
    if not written:
        raise ValueError("image that cannot be encoded")
    target.write_bytes(data.tobytes())
