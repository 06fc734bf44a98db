"""The ground plan of drawn scenes: turned coordinates, colours, and what several places share (roads, lots, yards)."""

from __future__ import annotations

import numpy as np

from ds2d2_yolo.datasets import shapes
from ds2d2_yolo.datasets.shapes import pick, plain, rectangle

GRASS = [((62, 98, 84), (84, 128, 112)), ((52, 84, 66), (86, 122, 104)), ((84, 122, 128), (110, 150, 158))]
SOIL = [((98, 124, 146), (132, 158, 178)), ((110, 130, 142), (150, 168, 178)), ((84, 104, 122), (118, 142, 160))]
PAVED = [((98, 98, 98), (120, 119, 117)), ((128, 132, 134), (150, 154, 156)), ((74, 74, 76), (94, 93, 92))]
WATER = [((92, 74, 44), (112, 92, 58)), ((84, 86, 62), (102, 104, 76)), ((64, 52, 36), (84, 70, 48))]
ASPHALT = [(78, 77, 76), (96, 95, 94), (64, 63, 62), (112, 110, 108)]
CONCRETE = [(150, 152, 152), (134, 136, 138), (168, 170, 170)]
MARK = (205, 208, 208)
LENGTHS = {"plane": (12, 28), "ship": (8, 28), "car": (6.5, 9.5), "truck": (9, 18), "storage-tank": (7, 26)}


class Frame:
    """Local coordinates (u, v) about the image's middle, turned by `angle`; `reach` covers the image from there."""

    def __init__(self, canvas, angle=None):
        self.canvas, self.angle = canvas, canvas.rng.uniform(0, 2 * np.pi) if angle is None else angle
        c, s = np.cos(self.angle), np.sin(self.angle)
        self.matrix, self.reach = np.array([[c, s], [-s, c]]), canvas.size * 0.72

    def __call__(self, points):
        return np.asarray(points, float) @ self.matrix + self.canvas.size / 2

    def band(self, u1, v1, u2, v2, colour, opacity=1.0):
        """Paints one rectangle on the ground."""
        self.bands([(u1, v1, u2, v2)], colour, opacity)

    def bands(self, boxes, colour, opacity=1.0):
        """Paints many rectangles (u1, v1, u2, v2) of one colour at once."""
        self.canvas.fill([self(rectangle(*box)) for box in boxes], colour, opacity)

    def dashes(self, v, colour, dash=5.0, gap=7.0, width=0.9):
        """A broken line along v through the whole frame."""
        starts = np.arange(-self.reach, self.reach, dash + gap)
        self.bands([(u, v - width / 2, u + dash, v + width / 2) for u in starts], colour, 0.75)

    def sees(self, u, v, margin):
        """Whether anything within `margin` of the point may be in the image."""
        return self.canvas.sees(*self([u, v]), margin)

    def add(self, name, u, v, heading, length, within=None):
        x, y = self([u, v])
        return self.canvas.add(name, x, y, self.angle + heading, length, within)

    def clutter(self, parts, u, v, turn=0.0, **more):
        x, y = self([u, v])
        return self.canvas.clutter(parts, x, y, self.angle + turn, **more)


def length_of(canvas, name):
    """A length in pixels for an object of this class: the classes overlap in size."""
    low, high = LENGTHS[name]
    return canvas.zoom * canvas.rng.uniform(low, high)


def trees(canvas, count, spread=None, centre=None):
    """Single crowns all over, or a grove about a centre; they may hide what stands below."""
    rng = canvas.rng
    for _ in range(count):
        x, y = rng.uniform(0, canvas.size, 2) if centre is None else rng.normal(centre, spread)
        crown, side = shapes.tree(rng, rng.uniform(2.5, 7)), canvas.land.shape[0]
        row, column = (int(min(max(v / canvas.size, 0), 0.999) * side) for v in (y, x))
        if canvas.land[row, column]:
            canvas.clutter(crown, x, y, height=rng.uniform(3, 7), over=True)


def parking(frame, u1, v1, u2, v2, name="car"):
    """A paved lot with rows of vehicles standing across it."""
    canvas, rng = frame.canvas, frame.canvas.rng
    frame.band(u1, v1, u2, v2, plain(rng, ASPHALT), 0.92)
    long = canvas.zoom * (8.5 if name == "car" else 15.0)
    pitch, share = long * (0.64 if name == "car" else 0.5), rng.uniform(0.2, 0.85)
    rows = np.arange(v1 + long * 0.6, v2 - long * 0.5, long * 1.75)
    places = [(u, v) for v in rows for u in np.arange(u1 + pitch, u2 - pitch * 0.5, pitch)]
    marks = [(u - pitch / 2 - 0.3, v - long / 2, u - pitch / 2 + 0.3, v + long / 2) for u, v in places]
    frame.bands(marks, MARK, 0.5)
    for u, v in places:
        if rng.random() < share:
            turn = np.pi / 2 * rng.choice((-1, 1)) + rng.normal(0, 0.04)
            frame.add(name, u, v + rng.normal(0, 0.5), turn, long * rng.uniform(0.8, 1.05))


def road(frame, v, width, traffic, along=True):
    """A road through the whole frame at v (or at u, when not along) with vehicles in both lanes."""
    canvas, rng, reach = frame.canvas, frame.canvas.rng, frame.reach
    lane = Frame(canvas, frame.angle if along else frame.angle + np.pi / 2)
    v = v if along else -v
    if rng.random() < 0.6:
        lane.band(-reach, v - width / 2 - 2, reach, v + width / 2 + 2, plain(rng, CONCRETE), 0.7)
    lane.band(-reach, v - width / 2, reach, v + width / 2, plain(rng, ASPHALT), 0.95)
    lane.dashes(v, MARK)
    for side in (-1, 1):
        u = -reach
        while u < reach:
            u += rng.exponential(traffic) + 12
            name = "truck" if rng.random() < 0.3 else "car"
            heading = (0 if side > 0 else np.pi) + rng.normal(0, 0.05)
            lane.add(name, u, v + side * width * 0.25 + rng.normal(0, 0.5), heading, length_of(canvas, name))
            u += 8
    return lane


def court(frame, u, v):
    """A sports court: lines on green or red; clutter."""
    rng = frame.canvas.rng
    paint, edge = pick(rng, [(95, 120, 70), (70, 80, 150), (140, 110, 70)]), (215, 215, 215)
    for w, h, colour in ((15, 9, paint), (12.5, 6.5, edge), (11.7, 5.7, paint), (0.4, 6.5, edge)):
        frame.band(u - w, v - h, u + w, v + h, colour, 0.9)


def yard(frame, v):
    """One strip of a port's or depot's yard: lots side by side."""
    rng, u = frame.canvas.rng, -frame.reach
    while u < frame.reach:
        run = rng.uniform(35, 80)
        if frame.sees(u + run / 2, v, run):
            lot(frame, u, v, run)
        u += run + rng.uniform(6, 40)


def lot(frame, u, v, run):
    """Stacked containers, parked lorries, tanks or a hall."""
    canvas, rng, kind = frame.canvas, frame.canvas.rng, frame.canvas.rng.random()
    if kind < 0.4:
        for a in np.arange(u, u + run, 12):
            for b in (-9, -5.4, -1.8, 1.8, 5.4):
                if rng.random() < 0.75:
                    box = [(rectangle(-5.5, -1.6, 5.5, 1.6), pick(rng, shapes.CARGO))]
                    frame.clutter(box, a, v + b, height=2.5)
    elif kind < 0.6:
        for a in np.arange(u, u + run, canvas.zoom * rng.uniform(8, 20)):
            frame.add("truck", a, v, np.pi / 2 + rng.normal(0, 0.05), length_of(canvas, "truck"))
    elif kind < 0.8:
        tanks(frame, u, v - 13, u + run, v + 13)
    else:
        frame.clutter(shapes.hall(rng, run * 0.8, 22), u + run / 2, v, height=7)


def tanks(frame, u1, v1, u2, v2):
    """Tanks of one size in a grid on a pale pad, with pipes; round pads that are no tanks among them."""
    canvas, rng = frame.canvas, frame.canvas.rng
    size = min(length_of(canvas, "storage-tank"), v2 - v1)
    frame.band(u1, v1, u2, v2, plain(rng, CONCRETE), 0.55)
    step = max(size, 14) * rng.uniform(1.12, 1.7)
    for v in np.arange(v1 + size / 2, v2 - size / 2 + 0.1, step):
        frame.band(u1, v - 0.5, u2, v + 0.5, (110, 115, 118), 0.5)
        for u in np.arange(u1 + size / 2, u2 - size / 2 + 0.1, step):
            kind = rng.random()
            if kind < 0.62:
                sun = np.arctan2(*canvas.sun[::-1]) - frame.angle
                frame.add("storage-tank", u, v, sun, size * rng.uniform(0.9, 1.05))
            elif kind < 0.8:
                canvas.fill([frame(shapes.disc(u, v, size * 0.46))], plain(rng, CONCRETE + ASPHALT), 0.75)
