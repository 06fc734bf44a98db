from dataclasses import replace

import cv2
import numpy as np

from ds2d2_yolo.report.bands import Bands, Explanation, LevelView, _said, draw, table


def level(stride, height=16, width=24, **changes):
    rng = np.random.default_rng(stride)
    full, half = (height, width), (height // 2, width // 2)
    bands = [Bands(rng.random(full), rng.random(half), rng.random(half)) for _ in range(2)]
    weight = np.ones(half)
    weight[1:3, 1:3] += 0.25
    maps = {"difference": rng.random(full), "low_difference": rng.random(half), "high_difference": rng.random(half)}
    gap = np.zeros(full)
    gap[3, 4] = 1.0
    known = {"gap_full": gap, "gap_high": gap, "on_objects": {"difference": 1.25, "gap_full": 812.4, "gap_high": None}}
    return LevelView(stride, *bands, **{"weight": weight, **maps, **known, **changes})


def explanation(*levels, **changes):
    image = np.full((128, 192, 3), 90, np.uint8)
    boxes = np.array([[8.0, 8, 40, 40]])
    return Explanation("a title", image, (0, 0, 192, 128), boxes, levels, ("A note.",), **changes)


def drawn(tmp_path, *levels, **changes):
    return cv2.imread(str(draw(replace(explanation(*levels), **changes), tmp_path / "made" / "a.png")))


def colourful(picture):
    """Pixels that are far from gray."""
    return (np.ptp(picture.astype(int), axis=2) > 60).sum()


def test_levels_have_their_rows_and_what_is_not_known_is_left_out(tmp_path):
    one, two = drawn(tmp_path, level(8)), drawn(tmp_path, level(8), level(16))
    assert one.shape[1] == two.shape[1] and two.shape[0] > 1.5 * one.shape[0]
    nothing = level(8, gap_full=None, gap_high=None, weight=np.ones((8, 12)), on_objects={})
    bare = drawn(tmp_path, nothing, boxes=np.zeros((0, 4)))
    assert bare.shape == one.shape
    right = slice(12 * one.shape[1] // 13, None)  # of the gaps, with their colour bars
    assert colourful(bare[:, right]) == 0 < colourful(one[:, right])


def test_flat_maps_narrow_images_and_hostile_names(tmp_path):
    zero, half = np.zeros((16, 24)), np.zeros((8, 12))
    flat = level(8, gap_full=zero, gap_high=zero, difference=zero, low_difference=half, high_difference=half)
    tall, wide = (
        drawn(
            tmp_path, flat, image=np.zeros((*size, 3), np.uint8), content=(0, 0, *size[::-1]), title=text, notes=notes
        )
        for size, text, notes in (
            ((640, 32), r"$\frac{", ("_a", "%s {0}")),
            ((32, 640), "a\nb" * 200, ("<b>" * 100,)),
        )
    )
    assert 300 < wide.shape[0] < tall.shape[0] < 2500


def test_the_table_says_how_much_lies_on_objects():
    title, head, eight, sixteen = table(explanation(level(8), level(16, on_objects={}))).splitlines()
    assert "How many times" in title
    assert head.split()[:2] == ["stride", "features"] and len({len(head), len(eight), len(sixteen)}) == 1
    assert eight.split() == ["8", "1.2x", "-", "-", "812x", "-"] and sixteen.split() == ["16", *"-----"]


def test_a_gap_tells_its_part_of_all_levels():
    fine, coarse = np.ones((4, 4)), np.ones((2, 2))
    assert "80% of all levels" in _said(level(8, gap_full=fine), "gap_full", [fine, coarse])
