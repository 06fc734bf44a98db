"""The places a drawn scene may show: what lies where. Each takes a Canvas of `scenes.py` and draws on it.

Lengths are image pixels. A place is laid out in its own frame, turned by a random angle about the image's middle.
"""

from __future__ import annotations

import cv2
import numpy as np

from ds2d2_yolo.datasets import shapes
from ds2d2_yolo.datasets.layout import (
    ASPHALT,
    CONCRETE,
    GRASS,
    MARK,
    PAVED,
    SOIL,
    WATER,
    Frame,
    court,
    length_of,
    parking,
    road,
    tanks,
    trees,
    yard,
)
from ds2d2_yolo.datasets.shapes import plain


def block(frame, u1, v1, u2, v2):
    """What stands between the roads of a town: a car park, a hall, a park or houses with gardens."""
    canvas, rng, kind = frame.canvas, frame.canvas.rng, frame.canvas.rng.random()
    middle = ((u1 + u2) / 2, (v1 + v2) / 2)
    if kind < 0.2:
        cut = rng.uniform(0.45, 0.95)
        parking(frame, u1, v1, u1 + (u2 - u1) * cut, v2, "truck" if rng.random() < 0.15 else "car")
        trees(canvas, 3, 6, frame([u1 + (u2 - u1) * (cut + 1) / 2, middle[1]]))
    elif kind < 0.38:
        frame.band(u1, v1, u2, v2, plain(rng, CONCRETE), 0.9)
        size = (u2 - u1) * rng.uniform(0.5, 0.75), (v2 - v1) * rng.uniform(0.4, 0.65)
        frame.clutter(shapes.hall(rng, *size), *middle, height=rng.uniform(4, 9))
        for _ in range(5):
            name = "truck" if rng.random() < 0.5 else "car"
            u, v = rng.uniform(u1 + 6, u2 - 6), rng.uniform(v1 + 6, v2 - 6)
            frame.add(name, u, v, rng.choice(4) * np.pi / 2 + rng.normal(0, 0.05), length_of(canvas, name))
    elif kind < 0.55:
        court(frame, *middle)
        trees(canvas, 9, (u2 - u1) * 0.25, frame(middle))
    else:
        step = canvas.zoom * rng.uniform(18, 23)
        for u in np.arange(u1 + step / 2, u2 - step / 3, step):
            for v in np.arange(v1 + step / 2, v2 - step / 3, step):
                gable = shapes.house(rng, step * rng.uniform(0.5, 0.68), step * rng.uniform(0.38, 0.5))
                frame.clutter(gable, u, v, rng.choice(2) * np.pi / 2, height=rng.uniform(3, 6))
                if rng.random() < 0.2:
                    frame.add("car", u + step * 0.45, v, np.pi / 2, length_of(canvas, "car"))
                if rng.random() < 0.15:
                    pool = [(shapes.disc(0, 0, 3.2, 10) * [1.4, 1], (205, 185, 95))]
                    frame.clutter(pool, u, v + step * 0.45)


def town(canvas):
    """Roads in a grid, car parks, houses, trees."""
    rng, frame = canvas.rng, Frame(canvas)
    canvas.texture(*GRASS[rng.integers(3)], grain=6)
    width, step = canvas.zoom * rng.uniform(11, 14), canvas.zoom * rng.uniform(72, 105)
    offsets = np.arange(-frame.reach - rng.uniform(0, step), frame.reach + step, step)
    for u in offsets[:-1]:
        for v in offsets[:-1]:
            m = width * 0.75
            if frame.sees(u + step / 2, v + step / 2, step * 0.75):
                block(frame, u + m, v + m, u + step - m, v + step - m)
    for along in (True, False):
        for at in offsets:
            road(frame, at, width, rng.uniform(40, 160), along)
    trees(canvas, int(rng.integers(10, 45) * (canvas.size / 320) ** 2))


def airport(canvas):
    """A runway or taxiway, an apron with parked planes and their vehicles, a terminal."""
    rng, frame = canvas.rng, Frame(canvas)
    canvas.texture(*(GRASS + SOIL)[rng.integers(6)], grain=6)
    reach, edge = frame.reach, rng.uniform(-0.35, -0.1) * canvas.size
    frame.band(-reach, edge, reach, reach, plain(rng, CONCRETE + ASPHALT), 0.88)
    joints = [(u, edge, u + 0.6, reach) for u in np.arange(-reach, reach, 22)]
    frame.bands(joints + [(-reach, v, reach, v + 0.6) for v in np.arange(edge, reach, 22)], (90, 90, 90), 0.35)
    runway = edge - rng.uniform(35, 75)
    frame.band(-reach, runway - 15, reach, runway + 15, plain(rng, ASPHALT), 0.95)
    frame.dashes(runway, MARK, 14, 12, 1.4)
    for _ in range(int(rng.integers(0, 3))):
        frame.add("plane", rng.uniform(-reach, reach), runway, rng.choice((0, np.pi)), length_of(canvas, "plane"))
    row, parked = edge + rng.uniform(18, 30), canvas.zoom * rng.uniform(14, 25)
    while row < reach:
        length, heading = parked * rng.uniform(0.75, 1.25), rng.uniform(0, 2 * np.pi)
        for u in np.arange(-reach, reach, length * rng.uniform(1.05, 1.5)):
            frame.band(u - 0.5, row - length * 0.8, u + 0.5, row + length * 0.8, (70, 165, 195), 0.6)
            if rng.random() < 0.58:
                frame.add("plane", u, row, heading + rng.normal(0, 0.06), length * rng.uniform(0.85, 1.15))
            if rng.random() < 0.5:
                name = "truck" if rng.random() < 0.45 else "car"
                place = u + rng.normal(0, 9), row + rng.normal(0, 12)
                frame.add(name, *place, rng.uniform(0, 2 * np.pi), length_of(canvas, name))
        row += length * rng.uniform(1.3, 1.9)
        if rng.random() < 0.22:
            frame.clutter(shapes.hall(rng, rng.uniform(50, 110), 24), rng.uniform(-60, 60), row, height=8)
            parking(frame, -40, row + 18, 50, row + 52)
            row += 70


def shore(canvas, frame, level):
    """Water beyond v = level of the frame, with a ragged edge; returns its mask (255 = water)."""
    rng, side = canvas.rng, canvas.pixels.shape[0]
    at = (np.arange(side, dtype=np.float32) + 0.5) * canvas.size / side - canvas.size / 2
    v = -np.sin(frame.angle) * at[None, :] + np.cos(frame.angle) * at[:, None]
    wiggle = rng.standard_normal((6, 6)).astype(np.float32) * rng.choice((0.0, 6.0))
    wet = (v + cv2.resize(wiggle, (side, side), interpolation=cv2.INTER_CUBIC) > level).astype(np.uint8) * 255
    beach = cv2.dilate(wet, np.ones((9, 9), np.uint8))
    canvas.texture((150, 172, 184), (176, 196, 204), mask=beach)
    canvas.texture(*WATER[rng.integers(3)], contrast=0.7, grain=rng.uniform(2, 7), mask=wet)
    canvas.land = 255 - wet
    return wet


def afloat(canvas, water, count):
    """Ships under way, some with a wake, and foam that is no ship."""
    rng = canvas.rng
    for _ in range(count):
        (x, y), angle, length = rng.uniform(0, canvas.size, 2), rng.uniform(0, 2 * np.pi), length_of(canvas, "ship")
        ahead = np.array([np.cos(angle), np.sin(angle)])
        if canvas.add("ship", x, y, angle, length, water) and rng.random() < 0.55:
            side, stern = np.array([-ahead[1], ahead[0]]), (x, y) - ahead * length * 0.52
            for k in (-1, 1):
                far = stern - ahead * length * rng.uniform(0.6, 1.3) + k * side * length * 0.22
                canvas.line([stern - ahead * 0.8, far], (225, 225, 218), 1.2, 0.3)
        if rng.random() < 0.6:
            foam = rng.uniform(0, canvas.size, 2)
            if water[tuple((foam[::-1] * (water.shape[0] / canvas.size)).astype(int))]:
                turned = rng.uniform(-5, 5, 2)
                canvas.line([foam, foam + turned], (225, 225, 220), rng.uniform(0.7, 1.8), 0.5)


def harbour(canvas):
    """A quay with containers, lorries and tanks; piers with ships moored side by side; ships afloat."""
    rng, frame = canvas.rng, Frame(canvas)
    canvas.texture(*(PAVED + SOIL)[rng.integers(6)], grain=6)
    reach, level = frame.reach, rng.uniform(-0.25, 0.2) * canvas.size
    water = shore(canvas, frame, level)
    marina, gap = rng.random() < 0.5, canvas.zoom * rng.uniform(50, 85)
    for u in np.arange(-reach + rng.uniform(0, gap), reach, gap):
        end, wide = level + rng.uniform(40, 110), rng.uniform(3, 6)
        frame.band(u - wide / 2, level - 6, u + wide / 2, end, plain(rng, CONCRETE), 0.95)
        long, v = (canvas.zoom * rng.uniform(9, 15)), level + 6
        while v < end:
            length = long * rng.uniform(0.8, 1.2) if marina else length_of(canvas, "ship")
            for side in (-1, 1):
                if rng.random() < 0.6:
                    heading = np.pi / 2 * rng.choice((-1, 1)) if not marina else (0 if side > 0 else np.pi)
                    off = length * (0.56 if marina else 0.26) + wide / 2
                    frame.add("ship", u + side * off, v + length * (0 if marina else 0.5), heading, length, water)
            v += length * (rng.uniform(0.42, 0.6) if marina else rng.uniform(1.05, 1.4))
    afloat(canvas, water, int(rng.integers(3, 16) * (canvas.size / 320) ** 2))
    road(frame, level - rng.uniform(16, 26), canvas.zoom * 12, 60)
    v = level - 45
    while v > -reach:
        yard(frame, v)
        v -= canvas.zoom * rng.uniform(34, 50)
    trees(canvas, int(rng.integers(0, 8)))


def depot(canvas):
    """A tank farm with a road, lorries and halls."""
    rng, frame = canvas.rng, Frame(canvas)
    canvas.texture(*(SOIL + PAVED + GRASS)[rng.integers(9)], grain=6)
    reach, v = frame.reach, -frame.reach
    while v < reach:
        if rng.random() < 0.3:
            yard(frame, v + 20)
            v += 42
        else:
            deep, u = rng.uniform(45, 90), -reach
            while u < reach:
                run = rng.uniform(60, 120)
                if frame.sees(u + run / 2, v + deep / 2, run):
                    tanks(frame, u, v, u + run, v + deep)
                u += run + rng.uniform(10, 70)
            v += deep + 8
        if rng.random() < 0.6:
            road(frame, v + 9, canvas.zoom * 12, rng.uniform(40, 120))
            v += 20
    trees(canvas, int(rng.integers(0, 16)))


def fields(canvas):
    """Farmland: furrowed parcels, a lane, groves, a farm with a few vehicles and silos."""
    rng, frame = canvas.rng, Frame(canvas)
    canvas.texture(*GRASS[rng.integers(3)], grain=7)
    u = -frame.reach
    while u < frame.reach:
        wide, v = rng.uniform(40, 110), -frame.reach
        while v < frame.reach:
            tall = rng.uniform(50, 130)
            first, second = (GRASS + SOIL)[rng.integers(6)]
            frame.band(u, v, u + wide - 3, v + tall - 3, plain(rng, [first, second]), rng.uniform(0.4, 0.8))
            rows = np.arange(u + 2, u + wide - 5, rng.uniform(3, 7))
            frame.bands([(a, v, a + 1.2, v + tall - 3) for a in rows], plain(rng, [first, second]), 0.4)
            v += tall
        u += wide
    at = rng.uniform(-0.3, 0.3) * canvas.size
    road(frame, at, canvas.zoom * 11, rng.uniform(40, 90))
    yard(frame, at + 32) if rng.random() < 0.4 else parking(frame, -30, at + 12, 40, at + 45)
    for _ in range(int(rng.integers(2, 7))):
        trees(canvas, int(rng.integers(3, 14)), rng.uniform(6, 20), rng.uniform(0, canvas.size, 2))


def sea(canvas):
    """Open water, nearly: a strip of land or none, and ships."""
    frame = Frame(canvas)
    canvas.texture(*SOIL[canvas.rng.integers(3)])
    water = shore(canvas, frame, canvas.rng.uniform(-0.9, -0.4) * canvas.size)
    afloat(canvas, water, int(canvas.rng.integers(8, 30) * (canvas.size / 320) ** 2))


PLACES = {town: 0.3, airport: 0.24, harbour: 0.2, depot: 0.14, fields: 0.06, sea: 0.06}


def draw(canvas):
    """Draws a place chosen at random."""
    places = list(PLACES)
    places[canvas.rng.choice(len(places), p=list(PLACES.values()))](canvas)
