"""Draws one aerial scene: ground, objects with their boxes, clutter, light and sensor."""

from __future__ import annotations

import cv2
import numpy as np

from ds2d2_yolo.datasets import shapes, themes

NAMES = tuple(shapes.SHAPES)
"""Class names, in label order."""

SUPER = 2  # canvas pixels per image pixel: drawn larger, then averaged down
SHIFT = 4  # fractional bits OpenCV takes in polygon corners
MIN_VISIBLE = 0.4  # an object with less of itself in sight carries no label
MIN_SIDE = 2.5  # pixels; nor does a sliver
EMPTY = 0.06  # share of scenes without objects
OCCLUDER = -1


def _corners(points, centre=0.5):
    """Image pixels -> OpenCV's fixed-point canvas coordinates (whose integers are pixel centres)."""
    return np.rint((np.asarray(points) * SUPER - centre) * (1 << SHIFT)).astype(np.int32)


def _fixed(x, y):
    """Whole canvas pixels -> fixed point."""
    return np.array([x << SHIFT, y << SHIFT], np.int32)


def _window(outlines):
    """Canvas pixels (x1, y1, x2, y2) that fixed-point polygons may touch."""
    x1, y1, x2, y2 = cv2.boundingRect(np.concatenate(outlines))
    x2, y2 = x1 + x2, y1 + y2
    return (x1 >> SHIFT) - 1, (y1 >> SHIFT) - 1, (x2 >> SHIFT) + 3, (y2 >> SHIFT) + 3


def noise(rng, size, cells=(3, 7, 15, 31, 63), falloff=0.62):
    """Smooth random field of several octaves, (size, size) float32, mean 0 and deviation 1."""
    field = np.zeros((size, size), np.float32)
    for octave, count in enumerate(cells):
        coarse = rng.standard_normal((count, count), np.float32)
        field += falloff**octave * cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    return (field - field.mean()) / (field.std() + 1e-6)


class Canvas:
    """A scene while it is drawn: `pixels` (BGR), `owner` (which object a pixel shows: 0 none), the objects so far.

    All coordinates handed to its methods are image pixels, x to the right and y down, the top left corner (0, 0).
    """

    def __init__(self, rng: np.random.Generator, size: int):
        self.rng, self.size, self.zoom = rng, size, rng.uniform(1.0, 1.5)
        self.pixels = np.zeros((size * SUPER, size * SUPER, 3), np.uint8)
        self.owner = np.zeros(self.pixels.shape[:2], np.int16)
        self.land = np.full(self.pixels.shape[:2], 255, np.uint8)
        self.objects: list[tuple[int, int, tuple[int, int, int, int]]] = []  # class, canvas area, window
        self.inhabited = True
        turn, self.reach, self.sunlit = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 1.1), rng.uniform(0.35, 0.65)
        self.sun = self.reach * np.array([np.cos(turn), np.sin(turn)])  # shadow per unit of height

    def texture(self, first, second, contrast=1.0, grain=5.0, mask=None):
        """Paints ground between two colours by smooth noise, plus grain; everywhere or where `mask` is set."""
        half = max(self.size // 2, 64)
        blend = cv2.resize(1 / (1 + np.exp(-contrast * noise(self.rng, half))), (self.size, self.size))[..., None]
        ground = np.float32(first) + (np.float32(second) - np.float32(first)) * blend
        ground += grain * self.rng.standard_normal((self.size, self.size, 1), np.float32)
        ground = cv2.resize(np.clip(ground, 0, 255).astype(np.uint8), None, fx=SUPER, fy=SUPER)
        if mask is None:
            self.pixels[:] = ground
        else:
            cv2.copyTo(ground, mask, self.pixels)

    def fill(self, outlines, colour, opacity=1.0):
        """Paints polygons, a list of (P,2), on the ground; opacity < 1 lets the texture below show."""
        if not outlines:
            return
        outlines = [_corners(points) for points in outlines]
        x1, y1, x2, y2 = (min(max(v, 0), self.pixels.shape[0]) for v in _window(outlines))
        patch = self.pixels[y1:y2, x1:x2]
        if patch.size:
            painted, corner = patch.copy(), _fixed(x1, y1)
            for points in outlines:  # one by one: together they would cut holes where they overlap
                cv2.fillPoly(painted, [points - corner], colour, cv2.LINE_AA, SHIFT)
            painted = cv2.addWeighted(painted, opacity, patch, 1 - opacity, 0)
            bare = (self.owner[y1:y2, x1:x2] == 0).view(np.uint8)  # ground lies below whatever stands there already
            patch[:] = cv2.copyTo(painted, bare, patch.copy())

    def line(self, points, colour, width, opacity=1.0):
        """Paints a band of `width` along straight pieces."""
        points = np.asarray(points, float)
        for a, b in zip(points[:-1], points[1:], strict=True):
            across = np.array([a[1] - b[1], b[0] - a[0]]) * (width / 2 / max(np.hypot(*(b - a)), 1e-6))
            self.fill([np.stack([a + across, b + across, b - across, a - across])], colour, opacity)

    def add(self, name, x, y, angle, length, within=None) -> bool:
        """Places an object of class `name`; False where another stands or off the mask `within` (default: land)."""
        if not self.inhabited or not self.sees(x, y, length):
            return False
        outlines, colours = self._turn(shapes.SHAPES[name](self.rng), x, y, angle, length)
        height = length * 0.4 if name == "storage-tank" else min(length * 0.18, 2.5)
        mask, window = self._stand(outlines, within)
        if mask is None:
            return False
        self._paint(outlines, colours, height)
        self.objects.append((NAMES.index(name), int(np.count_nonzero(mask)), window))
        self._own(mask, window, len(self.objects))
        return True

    def clutter(self, parts, x, y, angle=0.0, height=0.0, over=False, within=None) -> bool:
        """Places something that is no object; `over=True` (tree crowns) may hide objects."""
        if not self.sees(x, y, 2 * np.abs(parts[0][0]).max()):
            return False
        outlines, colours = self._turn(parts, x, y, angle, 1.0)
        mask, window = self._mask(outlines) if over else self._stand(outlines, within)
        if mask is None:
            return False
        self._paint(outlines, colours, height)
        self._own(mask, window, OCCLUDER)
        return True

    def sees(self, x, y, margin=0.0) -> bool:
        """Whether a point lies in the image or no farther than `margin` outside."""
        return -margin < x < self.size + margin and -margin < y < self.size + margin

    def labels(self) -> np.ndarray:
        """Tight boxes of what is still to be seen of each object, (N,5) float32: class, x, y, w, h over the size."""
        rows = []
        for number, (kind, area, window) in enumerate(self.objects, 1):
            inside, _ = self._clip(window)
            ys, xs = np.nonzero(self.owner[inside] == number)
            if len(xs) < MIN_VISIBLE * area:
                continue
            x1, x2, y1, y2 = xs.min(), xs.max() + 1, ys.min(), ys.max() + 1
            if min(x2 - x1, y2 - y1) < MIN_SIDE * SUPER:
                continue
            left, top = inside[1].start, inside[0].start
            rows.append((kind, left + (x1 + x2) / 2, top + (y1 + y2) / 2, x2 - x1, y2 - y1))
        boxes = np.array(rows, np.float64).reshape(-1, 5)
        boxes[:, 1:] /= self.pixels.shape[0]
        return boxes.astype(np.float32)

    def _turn(self, parts, x, y, angle, length):
        """Parts in their own units -> (fixed-point outlines, colours) at their place."""
        c, s = np.cos(angle) * length, np.sin(angle) * length
        every = np.concatenate([points for points, _ in parts]) @ np.array([[c, s], [-s, c]]) + (x, y)
        every, outlines, start = _corners(every), [], 0
        for points, _ in parts:
            outlines.append(every[start : start + len(points)])
            start += len(points)
        return outlines, [colour for _, colour in parts]

    def _mask(self, outlines):
        """Union of fixed-point polygons as a mask on its window of the canvas, which may stick out of it."""
        x1, y1, x2, y2 = _window(outlines)
        mask, corner = np.zeros((y2 - y1, x2 - x1), np.uint8), _fixed(x1, y1)
        for points in outlines:
            cv2.fillPoly(mask, [points - corner], 255, cv2.LINE_AA, SHIFT)
        return mask, (x1, y1, x2, y2)

    def _clip(self, window):
        """Slices of the canvas that the window covers, and of the window's own mask."""
        x1, y1, x2, y2 = window
        side = self.pixels.shape[0]
        left, top = min(max(x1, 0), side), min(max(y1, 0), side)
        right, bottom = min(max(x2, 0), side), min(max(y2, 0), side)
        inside = slice(top, bottom), slice(left, right)
        return inside, (slice(top - y1, bottom - y1), slice(left - x1, right - x1))

    def _stand(self, outlines, within):
        """The footprint's mask and window, or (None, None) where the place is taken, forbidden or out of sight."""
        mask, window = self._mask(outlines)
        mask = np.where(mask > 127, 255, 0).astype(np.uint8)  # half covered pixels and more
        inside, part = self._clip(window)
        seen = mask[part] > 0
        ground = self.land if within is None else within
        free = seen.any() and not self.owner[inside][seen].any() and ground[inside][seen].all()
        return (mask, window) if free else (None, None)

    def _own(self, mask, window, number):
        inside, part = self._clip(window)
        self.owner[inside][mask[part] > 127] = number

    def _paint(self, outlines, colours, height):
        """The cast shadow, then the parts."""
        if height > 0:
            count = 1 + int(height * self.reach / 3)
            steps = [_corners(self.sun * (height * k / count), 0) for k in range(1, count + 1)]
            cast = [points + step for step in steps for points in outlines]
            mask, window = self._mask(cast)
            inside, part = self._clip(window)
            patch = self.pixels[inside]
            patch[:] = patch * (1 - np.float32(self.sunlit / 255) * mask[part][..., None])
        for points, colour in zip(outlines, colours, strict=True):
            cv2.fillPoly(self.pixels, [points], colour, cv2.LINE_AA, SHIFT)


def _finish(canvas: Canvas) -> np.ndarray:
    """Canvas -> image: blur of the optics, averaging down, clouds' shade, exposure, haze, sensor noise."""
    rng, size = canvas.rng, canvas.size
    image = cv2.resize(canvas.pixels, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32)
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.25, 0.75))
    shade = np.clip(noise(rng, size, (2, 4, 8, 40, 80)) * 0.09, -0.25, 0.12) * rng.uniform(0.2, 1.4)
    gain = (1 + shade)[..., None] * np.float32(rng.uniform(0.62, 1.22) * rng.uniform(0.94, 1.06, 3))
    image = 255 * np.clip(image * gain / 255, 0, 1) ** rng.uniform(0.85, 1.2)
    haze = max(0.0, rng.uniform(-0.2, 0.3))
    image = image * (1 - haze) + haze * np.float32((205, 195, 188))
    image += rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(1.0, 5.0))
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def render(rng: np.random.Generator, size: int) -> tuple[np.ndarray, Canvas]:
    """One scene as (image uint8 (size,size,3) BGR, the canvas it was drawn on)."""
    canvas = Canvas(rng, size)
    canvas.inhabited = rng.random() >= EMPTY
    themes.draw(canvas)
    return _finish(canvas), canvas


def draw_scene(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws one scene: (image uint8 (size,size,3) BGR, labels (N,5) float32 of class, x, y, w, h in 0..1)."""
    image, canvas = render(rng, size)
    return image, canvas.labels()
