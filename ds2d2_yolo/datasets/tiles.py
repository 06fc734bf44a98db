"""Where an image is cut, and what is left of the objects in each piece."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import shapely
from ultralytics.data.split_dota import get_windows

from ds2d2_yolo.errors import UserError

_WHOLE = 1 - 1e-9  # of an object's area: rounding


@dataclass(frozen=True)
class Tiling:
    """How images are cut.

    Attributes:
        size: Edge of a tile in pixels.
        overlap: Of neighbouring tiles, in pixels of the tile.
        scales: The image is cut once at each; at 0.5 a tile shows twice ``size``, shrunk to ``size``.
        keep: Share of an object's area that a tile must hold to name it; what no tile holds so much of is named by the
            tile that holds most.
        empty: Share of the tiles without objects that is kept; ``convert`` keeps all of folders not trained on.
        format: Of the tiles' files: png or jpg.
    """

    size: int = 1024
    overlap: int = 200
    scales: tuple[float, ...] = field(default=(1.0,))
    keep: float = 0.7
    empty: float = 1.0
    format: str = "png"

    def __post_init__(self):
        if not 32 <= self.size <= 65536:
            raise UserError(f"size={self.size} of a tile must be 32 to 65536 pixels")
        if not 0 <= self.overlap < self.size:
            raise UserError(f"overlap={self.overlap} must be from 0 to below size={self.size}")
        if not self.scales or any(not 0.01 <= scale <= 16 for scale in self.scales):
            raise UserError(f"scales={','.join(map(str, self.scales))} must be numbers from 0.01 to 16")
        for name in ("keep", "empty"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}={getattr(self, name)} must be from 0 to 1")
        if self.format not in ("png", "jpg"):
            raise UserError(f"format={self.format} is neither png nor jpg")

    def windows(self, width: int, height: int) -> list[tuple[float, tuple[int, int, int, int]]]:
        """Return scale and window (x1, y1, x2, y2), in pixels of the image and within it, of every tile.

        Ultralytics' grid: steps of size less overlap, the last tile moved back to the edge.
        """
        found = []
        for scale in dict.fromkeys(self.scales):
            crop, gap = round(self.size / scale), round(self.overlap / scale)
            windows = get_windows((height, width), (crop,), (min(gap, crop - 1),)).tolist()
            windows = dict.fromkeys((x1, y1, min(x2, width), min(y2, height)) for x1, y1, x2, y2 in windows)
            found += [(scale, window) for window in windows]
        return found

    def file_size(self, scale: float, window: tuple[int, int, int, int]) -> tuple[int, int]:
        """Return width and height of a tile's file."""
        x1, y1, x2, y2 = window
        return max(round((x2 - x1) * scale), 1), max(round((y2 - y1) * scale), 1)


def cut(
    corners: np.ndarray, windows: np.ndarray, keep: float, rotated: bool, image: tuple[int, int] | None = None
) -> tuple[list[tuple[np.ndarray, np.ndarray]], np.ndarray]:
    """Cut objects along windows.

    Args:
        corners: ``(n, 4, 2)`` xy around each object, in any direction; of some area.
        windows: ``(m, 4)`` xyxy.
        keep: Share of an object that a window must hold; what no window holds so much of goes to the one that holds
            most of it, if any holds any.
        rotated: Give the parts as rotated boxes, else as upright ones.
        image: Width and height; what reaches over its edge counts as far as it is inside. None: in full.

    Returns:
        For every window the indices of its objects ``(k,)`` and their corners ``(k, 4, 2)`` within the window, in
        pixels of the image (an object that is whole keeps its corners), and for every object the largest share of it
        that a window holds ``(n,)``.
    """
    outlines = shapely.convex_hull(shapely.polygons(corners))  # crossed corners would have no area
    frames = shapely.box(*np.asarray(windows, float).T)
    window, object_ = shapely.STRtree(outlines).query(frames) if len(outlines) else np.zeros((2, 0), int)
    parts = _inner_parts(outlines[object_], np.asarray(windows, float)[window])
    full = shapely.area(outlines)
    there = full
    if image:
        there = shapely.area(_inner_parts(outlines, np.array([[0, 0, *image]], float).repeat(len(outlines), 0)))
    share = shapely.area(parts) / there.clip(1e-12)[object_]
    best = np.zeros(len(outlines))
    np.maximum.at(best, object_, share)
    named = (share >= min(keep, _WHOLE)) & (share > 0)
    # Nobody's: the first of the windows that hold most
    orphans = np.setdiff1d(object_[share > 0], object_[named])
    order = np.lexsort((window, -share))
    order = order[np.isin(object_[order], orphans)]
    named[order[np.unique(object_[order], return_index=True)[1]]] = True
    result = []
    for number, frame in enumerate(np.asarray(windows, float)):
        pairs = np.flatnonzero(named & (window == number))
        pairs = pairs[np.argsort(object_[pairs])]
        own = object_[pairs]
        whole = shapely.area(parts[pairs]) >= _WHOLE * full[own]
        result.append((own, _shapes(corners[own], parts[pairs], whole, frame, rotated)))
    return result, best


def _inner_parts(outlines: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """What of each outline lies in its frame ``(n, 4)``; most lie in it whole and need no geometry."""
    box, parts = shapely.bounds(outlines).reshape(-1, 4), outlines.copy()
    across = (box[:, :2] < frames[:, :2]).any(1) | (box[:, 2:] > frames[:, 2:]).any(1)
    parts[across] = shapely.intersection(outlines[across], shapely.box(*frames[across].T))
    return parts


def areas(corners: np.ndarray) -> np.ndarray:
    """Return the areas ``(n,)`` that corners ``(n, 4, 2)`` span, in whatever order they come."""
    return shapely.area(shapely.convex_hull(shapely.polygons(corners)))


def bounds(corners: np.ndarray) -> np.ndarray:
    """Return the upright boxes ``(n, 4)`` xyxy around corners ``(n, 4, 2)``."""
    return np.concatenate([corners.min(1), corners.max(1)], 1) if len(corners) else np.zeros((0, 4))


def rectangles(boxes: np.ndarray) -> np.ndarray:
    """Return the corners ``(n, 4, 2)`` of upright boxes ``(n, 4)`` xyxy, clockwise from the top left."""
    x1, y1, x2, y2 = np.asarray(boxes, np.float64).reshape(-1, 4).T
    return np.stack([x1, y1, x2, y1, x2, y2, x1, y2], 1).reshape(-1, 4, 2)


def _shapes(corners, parts, whole, frame, rotated) -> np.ndarray:
    """The corners of parts as they are written."""
    if not rotated:
        return rectangles(np.where(whole[:, None], bounds(corners), shapely.bounds(parts).reshape(-1, 4)))
    shapes = corners.copy()
    for i in np.flatnonzero(~whole):
        shapes[i] = shapely.get_coordinates(shapely.oriented_envelope(parts[i]))[:4]
    return shapes.clip(frame[:2], frame[2:])
