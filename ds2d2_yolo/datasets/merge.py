"""From detections in tiles to detections in whole images.

Where tiles overlap, an object is detected several times. Two detections of the whole object are alike, and NMS keeps
one. Where a tile's border cuts it, that tile gives a piece: its IoU with the whole box is the share of the object that
the tile shows, so that plain NMS keeps every piece below its threshold as a second, wrong detection, and a piece above
it that scores better than the whole box even replaces it. So pieces are looked for first: a detection at an inner
border of its tile is one if a larger one of another tile goes on beyond that tile and, *cut to it*, is the same box by
the threshold of NMS, or holds it (the upright box around the tip of a slanting ship is but a corner of the ship's). The
larger one must score half of what the piece does, or noise would take good detections away. A small object that is at a
border inside of a larger one's box is not lost: the tile beyond shows it whole, away from its own borders.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import shapely
import torch
from torchvision.ops import nms

from ds2d2_yolo.datasets.predictions import Detections
from ds2d2_yolo.datasets.tile_tables import CORNERS
from ds2d2_yolo.datasets.tiles import areas, bounds, rectangles
from ds2d2_yolo.errors import UserError

COLUMNS = ["image", "class", "score", *CORNERS]
_MANY = 5000  # boxes; of more, torchvision's NMS, which compares all with all, takes longer than `_upright_nms`
_PAIRS = 2**20  # of boxes that are compared at a time, some 200 bytes each
_LEAST = 0.01  # pixels: what is thinner after clipping is nothing
_TOUCH = (2.0, 0.05)  # how near a border is at it: pixels, or a share of the box's extent
_INSIDE = 0.8  # of a piece's area that lies in what it is a piece of
_WORTH = 0.5  # of a piece's score that what it is a piece of must have


def merge(
    detections: Detections,
    tiles: pd.DataFrame,
    iou_horizontal: float = 0.5,
    iou_rotated: float = 0.1,
    rotated: bool = False,
    pieces: str = "drop",
) -> pd.DataFrame:
    """Merge detections in tiles by NMS a class over the whole image.

    Boxes are moved and scaled to the image and clipped to it, corner by corner; those outside of it are left out.

    Args:
        detections: Those of tiles.
        tiles: The table of the tiles.
        iou_horizontal: Above this IoU the lesser of two upright boxes goes.
        iou_rotated: The same of rotated ones, whose neighbours overlap less; IoU is that of the polygons.
        rotated: Keep rotated boxes; else the upright boxes around them are taken.
        pieces: ``drop`` those that a tile's border cut out of a detection of another tile (see above), ``keep`` for NMS
            alone, as DOTA's development kit does.

    Returns:
        A table of image, class (index), score and corners in pixels of the image, by image, class and falling score.

    Raises:
        UserError: A threshold is not from 0 to 1, or ``pieces`` is no such word.
    """
    threshold = iou_rotated if rotated else iou_horizontal
    _check("iou_rotated" if rotated else "iou_horizontal", threshold, pieces)
    images, stems = pd.factorize(tiles["image"])
    frames = tiles[["x", "y", "width", "height"]].to_numpy(np.float64, copy=True)  # pandas' own is read-only
    scales = frames[:, 2:] / tiles[["tile_width", "tile_height"]].to_numpy(np.float64)
    sizes = tiles[["image_width", "image_height"]].to_numpy(np.float64)
    frames[:, 2:] += frames[:, :2]
    image = images[detections.tile]
    order = np.lexsort((-detections.scores, detections.classes, image))
    kept, shapes = [], []
    for group in _groups(order, np.stack([image, detections.classes], 1)):
        tile = detections.tile[group]
        corners = detections.corners[group].astype(np.float64) * scales[tile, None] + frames[tile, None, :2]
        corners = corners.clip(0, sizes[tile[0]])
        corners = corners if rotated else rectangles(bounds(corners))
        scores = detections.scores[group].astype(np.float64)
        stays = _survivors(corners, scores, tile, frames, sizes[tile[0]], threshold, rotated, pieces)
        kept.append(group[stays])
        shapes.append(corners[stays])
    kept = np.concatenate(kept) if kept else np.zeros(0, int)
    return _table(stems.to_numpy(object)[image[kept]], detections, kept, shapes)


def _table(images: np.ndarray, detections: Detections, kept: np.ndarray, shapes: list[np.ndarray]) -> pd.DataFrame:
    columns = {"image": images, "class": detections.classes[kept].astype(int)}
    columns["score"] = detections.scores[kept].astype(np.float64)
    values = np.concatenate(shapes).reshape(-1, 8) if shapes else np.zeros((0, 8))
    return pd.DataFrame({**columns, **dict(zip(CORNERS, values.T, strict=True))})


def _check(name: str, threshold: float, pieces: str) -> None:
    if not 0 <= threshold <= 1:
        raise UserError(f"{name}={threshold} must be from 0 to 1")
    if pieces not in ("drop", "keep"):
        raise UserError(f"pieces={pieces} is neither drop nor keep")


def _groups(order: np.ndarray, keys: np.ndarray) -> list[np.ndarray]:
    """``order`` in runs of equal keys."""
    changes = (np.diff(keys[order], axis=0) != 0).any(1)
    return np.split(order, np.flatnonzero(changes) + 1) if len(order) else []


def _survivors(corners, scores, tile, frames, size, threshold, rotated, pieces) -> np.ndarray:
    """The places of those of one image and class that stay."""
    stays = np.isfinite(corners).all((1, 2)) & ((corners.max(1) - corners.min(1)) >= _LEAST).all(1)
    stays[stays] &= areas(corners[stays]) > 0
    if pieces == "drop":
        stays[stays] &= ~_pieces(corners[stays], scores[stays], tile[stays], frames, size, threshold, rotated)
    stays = np.flatnonzero(stays)
    return stays[_nms(corners[stays], scores[stays], threshold, rotated)]


def _pieces(corners, scores, tile, frames, size, threshold, rotated) -> np.ndarray:
    """Which of the detections ``(n,)`` of one image and class are pieces of others that another tile shows more of."""
    boxes, own, area = bounds(corners), frames[tile], areas(corners)
    reach = np.maximum(_TOUCH[0], _TOUCH[1] * (boxes[:, 2:] - boxes[:, :2]))
    low = (boxes[:, :2] - own[:, :2] <= reach) & (own[:, :2] > 0)
    high = (own[:, 2:] - boxes[:, 2:] <= reach) & (own[:, 2:] < size)
    cut = (low | high).any(1)
    result = np.zeros(len(corners), bool)
    if not cut.any():
        return result
    outlines = shapely.convex_hull(shapely.polygons(corners)) if rotated else None
    tree = shapely.STRtree(shapely.box(*boxes.T))
    for number in np.unique(tile[cut]):
        frame = frames[number]
        near = np.sort(tree.query(shapely.box(*frame)))  # those that touch the tile
        low, high = boxes[near, :2], boxes[near, 2:]
        reaches = ((low < frame[:2]) | (high > frame[2:])).any(1) & ((low < frame[2:]) & (high > frame[:2])).all(1)
        here = tile[near] == number
        those, others = np.flatnonzero(cut[near] & here), np.flatnonzero(reaches & ~here)
        # A piece is the smaller one: no two are pieces of each other
        pairs = area[near[those], None] < area[near[others]]
        pairs &= _WORTH * scores[near[those], None] <= scores[near[others]]
        seen = np.concatenate([low.clip(frame[:2], frame[2:]), high.clip(frame[:2], frame[2:])], 1)
        pairs &= (seen[those, None, :2] < seen[others, 2:]).all(2) & (seen[others, :2] < seen[those, None, 2:]).all(2)
        a, b = (which[i] for which, i in zip((those, others), np.nonzero(pairs), strict=True))
        if rotated and len(a):
            used, at = np.unique(near[np.r_[a, b]], return_inverse=True)
            shown = shapely.intersection(outlines[used], shapely.box(*frame))
            shown, other = shown[at[: len(a)]], shown[at[len(a) :]]
            own_area, other_area, common = map(shapely.area, (shown, other, shapely.intersection(shown, other)))
        else:
            own_area, other_area = ((seen[i, 2:] - seen[i, :2]).prod(1) for i in (a, b))
            common = np.minimum(seen[a, 2:], seen[b, 2:]) - np.maximum(seen[a, :2], seen[b, :2])
            common = common.clip(0).prod(1)
        same = common >= threshold * (own_area + other_area - common)
        result[near[a[(common > 0) & (same | (common >= _INSIDE * own_area))]]] = True
    return result


def _nms(corners, scores, threshold, rotated) -> np.ndarray:
    """Indices that NMS keeps, by falling score."""
    if not rotated:
        boxes = bounds(corners)
        if len(boxes) > _MANY:
            return _upright_nms(boxes, scores, threshold)
        return nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold).numpy()
    order = np.argsort(-scores, kind="stable")
    outlines = shapely.convex_hull(shapely.polygons(corners[order]))
    area, tree = shapely.area(outlines), shapely.STRtree(outlines)
    alive, kept = np.ones(len(order), bool), []
    for i in range(len(order)):
        if not alive[i]:
            continue
        kept.append(i)
        near = tree.query(outlines[i])
        near = near[(near > i) & alive[near]]
        # No IoU is above the ratio of the areas
        near = near[np.minimum(area[near], area[i]) > threshold * np.maximum(area[near], area[i])]
        if len(near):
            common = shapely.area(shapely.intersection(outlines[near], outlines[i]))
            alive[near[common > threshold * (area[near] + area[i] - common)]] = False
    return order[np.array(kept, int)]


def _upright_nms(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """What torchvision's ``nms`` returns, in the same order, comparing only boxes that touch."""
    order = torch.from_numpy(scores).argsort(descending=True, stable=True).numpy()
    boxes = boxes[order]
    area, alive = (boxes[:, 2:] - boxes[:, :2]).prod(1), np.ones(len(order), bool)
    outlines = shapely.box(*boxes.T)
    tree, first = shapely.STRtree(outlines), 0
    # No box touches more than what shares its columns, or its rows
    most = np.min([_sharing(boxes[:, i], boxes[:, i + 2]) for i in (0, 1)], 0).cumsum()
    while first < len(order):
        stop = max(first + 1, int(np.searchsorted(most, (most[first - 1] if first else 0) + _PAIRS, "right")))
        own = first + np.flatnonzero(alive[first:stop])
        a, b = tree.query(outlines[own])
        a = own[a]
        later = (b > a) & alive[b]
        a, b = a[later], b[later]
        # Multiplied and added up as torchvision does, so that no rounding decides otherwise
        edges = np.minimum(boxes[a, 2:], boxes[b, 2:]) - np.maximum(boxes[a, :2], boxes[b, :2])
        common = edges.clip(0).prod(1)
        above = common / (area[a] + area[b] - common) > threshold
        a, b = a[above], b[above]
        by_first = np.argsort(a, kind="stable")
        a, b = a[by_first], b[by_first]
        which, starts = np.unique(a, return_index=True)
        for i, (start, end) in zip(which, pairwise([*starts, len(b)]), strict=True):
            if alive[i]:
                alive[b[start:end]] = False
        first = stop
    return order[alive]


def _sharing(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """How many of these intervals each of them meets."""
    return np.searchsorted(np.sort(low), high, "right") - np.searchsorted(np.sort(high), low, "left")


def write_json(merged: pd.DataFrame, path: Path, rotated: bool) -> None:
    """Write what ``merge`` returns as COCO results, whole or not at all."""
    corners = merged[CORNERS].to_numpy(float)
    boxes = bounds(corners.reshape(-1, 4, 2))
    boxes[:, 2:] -= boxes[:, :2]
    polygons = corners.round(3).tolist() if rotated else [None] * len(corners)
    rows = zip(merged["image"], merged["class"], boxes.round(3).tolist(), merged["score"], polygons, strict=True)
    part = path.with_name(f".{path.name}.part")
    with part.open("w", encoding="utf-8") as file:
        for number, (image, kind, box, score, polygon) in enumerate(rows):
            row = {"image_id": image, "category_id": int(kind) + 1, "bbox": box, "score": float(score)}
            file.write((",\n" if number else "[\n") + json.dumps({**row, "poly": polygon} if polygon else row))
        file.write("\n]\n" if len(merged) else "[]\n")
    part.replace(path)
