"""What stands in the drawn scenes: outlines of objects and of clutter, as coloured polygons.

A shape is a list of parts `(points (P,2), colour BGR)`, painted in order, in units of the object's length: nose at
x = +0.5, tail at x = -0.5, y to its left side. Clutter shapes are in pixels around (0, 0).
"""

from __future__ import annotations

import functools

import numpy as np

Part = tuple[np.ndarray, tuple[int, int, int]]

BODY = [(240, 240, 240), (205, 205, 205), (150, 148, 145), (60, 58, 56), (35, 33, 32), (45, 45, 165), (140, 85, 45)]
BODY += [(70, 95, 115), (175, 195, 205), (60, 105, 70)]
ROOF = [(75, 95, 155), (90, 105, 130), (120, 120, 125), (150, 155, 160), (70, 75, 90), (175, 185, 190), (120, 100, 85)]
CARGO = [
    (235, 235, 235),
    (215, 215, 210),
    (160, 110, 60),
    (60, 75, 160),
    (80, 130, 85),
    (60, 140, 190),
    (110, 110, 112),
]
GLASS = (48, 42, 38)


def pick(rng, colours, spread=14):
    """One colour of a list with each channel shifted by up to `spread`."""
    colour, shift = colours[rng.integers(len(colours))], rng.integers(-spread, spread + 1, 3).tolist()
    return tuple(min(max(v + d, 0), 255) for v, d in zip(colour, shift, strict=True))


def plain(rng, colours, spread=12):
    """One colour of a list made a little darker or lighter, its hue all but kept: for ground and pavement."""
    shift = int(rng.integers(-spread, spread + 1))
    return tuple(min(max(v + shift, 0), 255) for v in pick(rng, colours, 3))


def tone(colour, factor):
    """The colour made darker (factor < 1) or lighter (> 1)."""
    return tuple(int(min(255, v * factor)) for v in colour)


def rectangle(x1, y1, x2, y2):
    """Corner points of an axis-aligned rectangle, (4,2)."""
    return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], float)


@functools.cache
def _circle(points):
    turn = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack([np.cos(turn), np.sin(turn)], 1)


def disc(x, y, radius, points=28):
    """A circle as a polygon, (points,2)."""
    return _circle(points) * radius + (x, y)


def mirrored(points):
    """Closes a half outline (nose to tail, y >= 0) with its mirror image."""
    points = np.asarray(points, float)
    return np.concatenate([points, points[::-1] * [1, -1]])


def car(rng) -> list[Part]:
    """A car or a van: one body, a windscreen and mostly a rear window."""
    paint, half = pick(rng, BODY), rng.uniform(0.2, 0.25)
    van = rng.random() < 0.25
    parts = [(mirrored([[0.5, half * 0.7], [0.44, half], [-0.46, half], [-0.5, half * 0.8]]), paint)]
    front = 0.3 if van else 0.16
    parts.append((mirrored([[front, half * 0.85], [front - 0.13, half * 0.7]]), GLASS))
    if not van:
        parts.append((mirrored([[-0.28, half * 0.7], [-0.38, half * 0.8]]), GLASS))
        parts.append((rectangle(-0.26, -half * 0.62, 0.02, half * 0.62), tone(paint, 1.12)))
    return parts


def truck(rng) -> list[Part]:
    """A lorry: cab, dark gap, cargo body. The gap and the second colour tell it from a long car."""
    half, split = rng.uniform(0.13, 0.2), rng.uniform(0.22, 0.32)
    cargo = pick(rng, CARGO)
    cab = mirrored([[0.5, half * 0.75], [0.47, half * 0.92], [split, half * 0.92]])
    parts = [
        (rectangle(-0.46, -half * 0.6, split, half * 0.6), (38, 38, 38)),
        (cab, pick(rng, BODY)),
        (mirrored([[0.45, half * 0.75], [0.38, half * 0.7]]), GLASS),
        (rectangle(-0.5, -half, split - 0.05, half), cargo),
    ]
    if rng.random() < 0.5:  # ribs of a tarpaulin
        for x in np.arange(-0.4, split - 0.1, 0.16):
            parts.append((rectangle(x, -half, x + 0.04, half), tone(cargo, 0.86)))
    return parts


def plane(rng) -> list[Part]:
    """An airliner, a propeller plane or a delta-wing jet."""
    paint = pick(rng, [(240, 240, 240), (225, 225, 222), (190, 188, 185), (120, 118, 115), (90, 100, 96)])
    wing, kind = tone(paint, rng.uniform(0.8, 0.95)), rng.random()
    body = rng.uniform(0.045, 0.065)
    hull = mirrored([[0.5, 0.0], [0.44, body * 0.8], [0.36, body], [-0.25, body], [-0.5, body * 0.25]])
    if kind < 0.55:
        span, sweep = rng.uniform(0.42, 0.5), rng.uniform(0.2, 0.32)
        half = [[0.14, body], [0.14 - sweep, span], [0.08 - sweep, span], [-0.1, body]]
        parts = [(mirrored(half), wing)]
        for side in (-1, 1):
            x, y = 0.1 - sweep * 0.38, side * span * 0.42
            parts.append((rectangle(x, y - 0.03, x + 0.13, y + 0.03), tone(paint, 0.65)))
        tail = [[-0.36, body * 0.5], [-0.48, 0.18], [-0.52, 0.18], [-0.47, body * 0.4]]
    elif kind < 0.82:
        span = rng.uniform(0.48, 0.6)
        parts = [(mirrored([[0.18, body], [0.15, span], [0.03, span], [0.0, body]]), wing)]
        tail = [[-0.38, body * 0.5], [-0.4, 0.19], [-0.49, 0.19], [-0.49, body * 0.4]]
    else:
        parts = [(mirrored([[0.2, body], [-0.3, rng.uniform(0.3, 0.4)], [-0.4, 0.3], [-0.36, body]]), wing)]
        tail = [[-0.38, body], [-0.5, 0.16], [-0.52, 0.14], [-0.47, body]]
    parts += [(mirrored(tail), wing), (hull, paint)]
    parts.append((rectangle(-0.5, -0.012, -0.33, 0.012), pick(rng, BODY)))
    return parts


def ship(rng) -> list[Part]:
    """A motor boat, a cargo ship with its stacks, or a tanker."""
    kind, half = rng.random(), rng.uniform(0.13, 0.2)
    side = pick(rng, [(235, 235, 235), (60, 55, 50), (70, 60, 120), (130, 90, 60), (40, 40, 40)])
    line = np.array([[0.5, 0.0], [0.36, half * 0.62], [0.2, half], [-0.42, half], [-0.5, half * 0.75]])
    if kind < 0.5:
        line[:, 1] *= 1.25
        deck = pick(rng, [(235, 235, 235), (205, 215, 225), (130, 165, 190), (170, 170, 170)])
        parts = [(mirrored(line), tone(deck, 0.75)), (mirrored(line * [0.86, 0.72]), deck)]
        parts.append((mirrored([[0.16, half * 0.6], [0.02, half * 0.75]]), GLASS))
        parts.append((rectangle(-0.25, -half * 0.55, 0.02, half * 0.55), (238, 238, 238)))
        return parts
    deck = pick(rng, [(70, 75, 140), (75, 100, 85), (110, 110, 112), (85, 85, 130)])
    parts = [(mirrored(line), side), (mirrored(line * [0.94, 0.8]), deck)]
    if kind < 0.78:
        for x in np.arange(-0.2, 0.24, 0.11):
            for y in (-0.62, 0.04):
                parts.append((rectangle(x, half * y, x + 0.09, half * (y + 0.58)), pick(rng, CARGO)))
    else:
        parts.append((rectangle(-0.25, -half * 0.08, 0.35, half * 0.08), tone(deck, 1.5)))
        parts.append((rectangle(0.02, -half * 0.6, 0.06, half * 0.6), tone(deck, 1.4)))
    parts.append((rectangle(-0.42, -half * 0.75, -0.28, half * 0.75), (232, 232, 232)))
    return parts


def storage_tank(rng) -> list[Part]:
    """A storage tank: bright rim, a roof that may float low (crescent of shade), a ladder to its middle."""
    paint = pick(rng, [(238, 238, 238), (215, 220, 222), (190, 190, 190), (150, 165, 175), (120, 120, 118)])
    parts = [(disc(0, 0, 0.5), paint)]
    if rng.random() < 0.55:
        sunk = rng.uniform(0.03, 0.09)
        parts += [(disc(0, 0, 0.44), tone(paint, 0.5)), (disc(sunk, 0, 0.43 - sunk), tone(paint, 0.82))]
    else:
        parts += [(disc(0, 0, 0.45), tone(paint, 0.88)), (disc(0.03, 0, 0.2), tone(paint, 0.97))]
    parts.append((rectangle(0, -0.03, 0.47, 0.03), tone(paint, 0.6)))
    return parts


SHAPES = {"plane": plane, "ship": ship, "car": car, "truck": truck, "storage-tank": storage_tank}


def house(rng, length, width) -> list[Part]:
    """A roof of two slopes, one lit; clutter."""
    roof, x, y = pick(rng, ROOF), length / 2, width / 2
    parts = [(rectangle(-x, -y, x, y), tone(roof, 0.72)), (rectangle(-x, -y, x, 0), tone(roof, 1.1))]
    if rng.random() < 0.4:  # hipped ends
        parts.append((np.array([[x, -y], [x, y], [x - y, 0]]), tone(roof, 0.9)))
        parts.append((np.array([[-x, -y], [-x, y], [y - x, 0]]), tone(roof, 0.95)))
    return parts


def hall(rng, length, width) -> list[Part]:
    """A flat roof with skylights and boxes the size of cars; clutter."""
    roof, x, y = pick(rng, ROOF + [(190, 190, 190)]), length / 2, width / 2
    parts = [(rectangle(-x, -y, x, y), tone(roof, 1.15)), (rectangle(1 - x, 1 - y, x - 1, y - 1), roof)]
    for _ in range(int(length * width / 220)):
        cx, cy = rng.uniform(-x + 4, x - 4), rng.uniform(-y + 3, y - 3)
        w, h = rng.uniform(1, 4), rng.uniform(1, 2.5)
        parts.append((rectangle(cx - w, cy - h, cx + w, cy + h), pick(rng, [(205, 205, 205), (95, 95, 95), GLASS])))
    return parts


def tree(rng, radius) -> list[Part]:
    """A crown: a ragged dark outline with lighter tufts; clutter."""
    base = pick(rng, [(38, 72, 52), (44, 84, 66), (35, 60, 45), (50, 90, 85)], 10)
    ragged = disc(0, 0, 1, 13) * (radius * rng.uniform(0.75, 1.1, (13, 1)))
    parts = [(ragged, base)]
    for _ in range(6):
        x, y = rng.normal(0, radius * 0.33, 2)
        parts.append((disc(x, y, radius * rng.uniform(0.2, 0.42), 8), tone(base, rng.uniform(0.85, 1.45))))
    return parts
