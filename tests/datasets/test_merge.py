"""From tiles to whole images: what NMS must leave, what becomes of pieces at the tiles' borders."""

import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from ds2d2_yolo.datasets.merge import COLUMNS, merge
from ds2d2_yolo.datasets.predictions import Detections
from ds2d2_yolo.datasets.tile_tables import CORNERS
from ds2d2_yolo.datasets.tiles import Tiling, cut, rectangles
from ds2d2_yolo.errors import UserError


def tiles_of(sizes, tiling):
    """The table that ``convert`` writes, of images 0, 1 ... of these sizes."""
    rows = []
    for image, (width, height) in enumerate(sizes):
        for scale, (x1, y1, x2, y2) in tiling.windows(width, height):
            name = f"{image}__{scale}__{x1}__{y1}"
            file = tiling.file_size(scale, (x1, y1, x2, y2))
            rows.append(("val", name, f"{image:04d}", x1, y1, x2 - x1, y2 - y1, *file, width, height))
    size = ["tile_width", "tile_height", "image_width", "image_height"]
    return pd.DataFrame(rows, columns=["split", "tile", "image", "x", "y", "width", "height", *size])


def seen_in(tiles, objects, rotated, keep=0.0, score=lambda share: 0.5):
    """Detections of a detector that sees everything: the objects (image, class, corners), cut along the tiles."""
    found = []
    for row, tile in enumerate(tiles.itertuples()):
        own = [(kind, corners) for image, kind, corners in objects if f"{image:04d}" == tile.image]
        if not own:
            continue
        frame = np.array([tile.x, tile.y, tile.x + tile.width, tile.y + tile.height], float)
        corners = np.stack([c for _, c in own])
        (which, parts), *_ = cut(corners, frame[None], 0, rotated)[0]
        whole = shapely.polygons(corners[which])
        share = shapely.area(shapely.intersection(whole, shapely.box(*frame))) / shapely.area(whole)
        stays = share >= max(keep, 1e-9)
        local = (parts - frame[:2]) * [tile.tile_width / tile.width, tile.tile_height / tile.height]
        found += [
            (row, own[i][0], score(s), p) for i, s, p in zip(which[stays], share[stays], local[stays], strict=True)
        ]
    columns = list(zip(*found, strict=True)) or [(), (), (), ()]
    kinds = (np.int64, np.int64, np.float64, np.float64)
    arrays = [np.array(c, kind) for c, kind in zip(columns, kinds, strict=True)]
    return Detections(*arrays[:3], arrays[3].reshape(-1, 4, 2), rotated)


def one(*boxes, tile=0, score=0.9, kind=0):
    """Detections xyxy of one tile."""
    n = len(boxes)
    scores = np.broadcast_to(score, n).astype(float)
    return Detections(np.full(n, tile), np.full(n, kind), scores, rectangles(np.array(boxes, float)))


def together(*parts):
    return Detections.joined(list(parts), False)


def boxes_of(merged):
    return sorted(merged[["x1", "y1", "x3", "y3"]].round(6).values.tolist())


def whole_somewhere(tiles, image, corners):
    t = tiles[tiles["image"] == f"{image:04d}"]
    low, high = corners.min(0), corners.max(0)
    inside = (low[0] >= t.x) & (low[1] >= t.y) & (high[0] <= t.x + t.width) & (high[1] <= t.y + t.height)
    return bool(inside.any())


@st.composite
def scenes(draw):
    """Tilings of images, and objects in their own cells of a grid, so that none touches another."""
    size = draw(st.integers(40, 120))
    overlap = draw(st.integers(0, size - 16))
    scales = draw(st.sampled_from([(1.0,), (1.0,), (0.5,), (1.0, 0.5), (2.0, 1.0)]))
    sizes = draw(st.lists(st.tuples(st.integers(30, 260), st.integers(30, 260)), min_size=1, max_size=2))
    cell = draw(st.sampled_from([24, 45, 90]))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    angled, objects = draw(st.booleans()), []
    for image, (width, height) in enumerate(sizes):
        for x in range(0, width - cell + 1, cell):
            for y in range(0, height - cell + 1, cell):
                if random.random() < 0.6:
                    w, h = random.uniform(3, cell * (0.4 if angled else 1) - 1, 2)
                    angle = random.uniform(0, np.pi) if angled else 0
                    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
                    corners = rectangles([-w / 2, -h / 2, w / 2, h / 2])[0] @ turn.T
                    # The box around a turned object's piece reaches out of it: in the middle it meets no neighbour
                    free = (-corners.min(0), cell - corners.max(0))
                    corners += (x, y) + (np.full(2, cell / 2) if angled else random.uniform(*free))
                    objects.append((image, int(random.integers(2)), corners))
    return tiles_of(sizes, Tiling(size, overlap, scales)), objects, angled


@settings(max_examples=60, deadline=None)
@given(scenes(), st.integers(0, 2**32))
def test_what_is_whole_in_some_tile_is_found_once_and_not_moved(scene, seed):
    tiles, objects, rotated = scene
    jitter = np.random.default_rng(seed)  # a piece may score better than the whole
    merged = merge(seen_in(tiles, objects, rotated, score=lambda s: jitter.uniform(0.5, 0.99)), tiles, rotated=rotated)
    assert list(merged.columns) == COLUMNS
    for image, kind, corners in objects:
        if whole_somewhere(tiles, image, corners):
            same = merged[(merged["image"] == f"{image:04d}") & (merged["class"] == kind)]
            shapes = shapely.polygons(same[CORNERS].to_numpy().reshape(-1, 4, 2))
            near = same[shapely.area(shapely.intersection(shapes, shapely.polygons(corners))) > 1e-6]
            assert len(near) == 1
            assert near[CORNERS].to_numpy().reshape(4, 2) == pytest.approx(corners, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(scenes())
def test_nothing_is_outside_of_its_image_and_nms_keeps_only_what_differs(scene):
    tiles, objects, rotated = scene
    merged = merge(seen_in(tiles, objects, rotated), tiles, rotated=rotated)
    sizes = tiles.groupby("image")[["image_width", "image_height"]].first()
    for (image, _), rows in merged.groupby(["image", "class"]):
        corners = rows[CORNERS].to_numpy().reshape(-1, 4, 2)
        assert (corners >= 0).all() and (corners <= sizes.loc[image].to_numpy()).all()
        assert (np.diff(rows["score"]) <= 0).all()
        shapes = shapely.convex_hull(shapely.polygons(corners))
        for i, shape in enumerate(shapes):
            common, union = shapely.intersection(shape, shapes[i + 1 :]), shapely.union(shape, shapes[i + 1 :])
            assert (shapely.area(common) <= (0.1 if rotated else 0.5) * shapely.area(union) + 1e-9).all()


def test_pieces_are_what_plain_nms_leaves():
    """The measure of the remedy: ships of 50 px in tiles of 100 px, seen even where a tenth of them is in the tile."""
    random = np.random.default_rng(5)
    tiling, objects = Tiling(100, 60), []
    for x in range(0, 600, 60):
        for y in range(0, 600, 60):
            corner = np.array([x, y]) + random.uniform(0, 8, 2)
            objects.append((0, 0, rectangles([*corner, *(corner + random.uniform(20, 50, 2))])[0]))
    tiles = tiles_of([(610, 610)], tiling)
    for better in (lambda share: 0.4 + 0.5 * share, lambda share: 0.9 - 0.4 * share):  # the whole, the piece
        detections = seen_in(tiles, objects, False, keep=0.1, score=better)
        plain, ours = (merge(detections, tiles, pieces=p) for p in ("keep", "drop"))
        expected = sorted(np.round(np.r_[c[0], c[2]], 6).tolist() for _, _, c in objects)
        assert boxes_of(ours) == expected
        assert len(plain) > 1.5 * len(objects)
    missed = [b for b in expected if b not in boxes_of(plain)]  # replaced by pieces of more than half
    assert len(missed) > 20


PAIR = tiles_of([(180, 100)], Tiling(100, 20))  # two tiles, from 0 and from 80


def test_the_larger_part_stays_of_what_no_tile_shows_whole():
    part = together(one((10, 10, 100, 30), tile=0), one((0, 10, 40, 30), tile=1))
    assert boxes_of(merge(part, PAIR)) == [[10, 10, 100, 30]]
    halves = together(one((30, 10, 100, 30), tile=0), one((0, 10, 70, 30), tile=1))
    assert len(merge(halves, PAIR)) == 2  # neither shows what the other is a part of


def test_a_small_thing_inside_of_a_large_one_is_not_lost():
    large = one((0, 10, 60, 50), tile=1)
    assert len(merge(together(large, one((85, 20, 93, 28), tile=0)), PAIR)) == 2  # not at the border
    at_border = together(large, one((92, 20, 100, 28), tile=0), one((12, 20, 20, 28), tile=1))
    assert boxes_of(merge(at_border, PAIR)) == [[80, 10, 140, 50], [92, 20, 100, 28]]
    assert boxes_of(merge(together(large, one((90, 5, 100, 28), tile=0)), PAIR))[1] == [90, 5, 100, 28]  # 0.78 in it


def test_the_tip_of_a_slanting_object_is_a_piece():
    ship = np.array([[90, 12], [94, 8], [150, 64], [146, 68]], float)
    for rotated in (False, True):
        found = seen_in(PAIR, [(0, 0, ship)], rotated)
        assert len(merge(found, PAIR, rotated=rotated, pieces="keep")) == (1 if rotated else 2)
        merged = merge(found, PAIR, rotated=rotated)
        assert merged[["x1", "y1"]].values.tolist() == ([[90, 12]] if rotated else [[90, 8]])


def test_noise_takes_no_good_detection_away():
    parts = together(one((82, 10, 100, 30), tile=0, score=0.9), one((0, 10, 22, 30), tile=1, score=0.1))
    merged = merge(parts, PAIR)
    assert merged["score"].tolist() == [0.9]
    sure = together(one((82, 10, 100, 30), tile=0, score=0.9), one((0, 10, 22, 30), tile=1, score=0.5))
    assert merge(sure, PAIR)["score"].tolist() == [0.5]


def test_the_image_s_own_border_cuts_no_piece():
    """Both reach the right edge of the image; only the box of tile 0 has an inner border at hand."""
    tiles = tiles_of([(100, 180)], Tiling(100, 20))
    parts = together(one((40, 70, 60, 95), tile=0), one((80, 30, 100, 60), tile=1), one((80, 20, 100, 30), tile=0))
    assert len(merge(parts, tiles)) == 3


def test_offsets_scales_and_clipping():
    tiles = tiles_of([(300, 150)], Tiling(100, 50, (0.5,)))
    assert tiles[["x", "tile_width"]].values.tolist() == [[0, 100], [100, 100]]
    found = together(one((10, 10, 20, 20), tile=1), one((90, 60, 130, 90), tile=1), one((101, 5, 130, 9), tile=1))
    assert boxes_of(merge(found, tiles)) == [[120, 20, 140, 40], [280, 120, 300, 150]]


def test_resized_tiles_go_by_their_files_sizes():
    tiles = tiles_of([(301, 151)], Tiling(100, 50, (0.7,)))
    last = tiles.iloc[-1]
    found = one((0, 0, last.tile_width, last.tile_height), tile=len(tiles) - 1)
    assert boxes_of(merge(found, tiles)) == [[last.x, last.y, last.x + last.width, last.y + last.height]]


def test_classes_and_images_are_kept_apart_and_scores_in_full():
    tiles = tiles_of([(100, 100), (100, 100)], Tiling(100, 20))
    box, score = (10, 10, 30, 30), 0.1234567890123
    found = together(one(box, kind=0, score=score), one(box, kind=1), one(box, tile=1), one(box, score=score - 1e-12))
    merged = merge(found, tiles)
    assert merged[["image", "class"]].values.tolist() == [["0000", 0], ["0000", 1], ["0001", 0]]
    assert merged["score"].tolist() == [score, 0.9, 0.9]


def test_rotated_neighbours_stay_and_doubles_go():
    diamond = np.array([[50, 30], [70, 50], [50, 70], [30, 50]], float)
    corners = np.stack([diamond, diamond + 0.5, diamond + (20, 20), diamond[[0, 2, 1, 3]] + (0, 0)])
    found = Detections(np.zeros(4, int), np.zeros(4, int), np.array([0.9, 0.8, 0.7, 0.95]), corners)
    tiles = tiles_of([(100, 100)], Tiling(100, 20))
    assert merge(found, tiles, rotated=True)["score"].tolist() == [0.95, 0.7]  # the crossed one is the same diamond
    assert merge(found, tiles)["score"].tolist() == [0.95, 0.7]
    assert len(merge(found, tiles, rotated=True, iou_rotated=1)) == 4


def test_what_is_no_box_is_left_out():
    found = one((10, 10, 10, 30), (10, np.nan, 30, 30), (200, 10, 230, 30), (10, 10, 30, 30))
    for rotated in (False, True):
        merged = merge(found, PAIR.iloc[:1].assign(image_width=100), rotated=rotated)
        assert merged[["x1", "x3"]].values.tolist() == [[10, 30]]


def test_no_detections_at_all():
    merged = merge(together(), PAIR)
    assert list(merged.columns) == COLUMNS and len(merged) == 0


@pytest.mark.parametrize(
    "given, named", [({"iou_horizontal": 1.5}, "iou_horizontal=1.5"), ({"pieces": "x"}, "pieces=x")]
)
def test_wrong_settings_are_named(given, named):
    with pytest.raises(UserError, match=named):
        merge(one((1, 1, 5, 5)), PAIR, **given)


def test_two_halves_alike_are_no_pieces_of_each_other():
    alike = together(one((60, 10, 100, 30), tile=0, score=0.8), one((0, 10, 40, 30), tile=1, score=0.8))
    assert boxes_of(merge(alike, PAIR)) == [[60, 10, 100, 30], [80, 10, 120, 30]]


def test_rotated_boxes_that_overlap_by_just_the_threshold_stay():
    corners = rectangles([(0, 0, 30, 10), (10, 0, 40, 10)])  # 20 of 40 pixels a row in common
    found = Detections(np.zeros(2, int), np.zeros(2, int), np.array([0.9, 0.8]), corners)
    tiles = tiles_of([(100, 100)], Tiling(100, 20))
    kept = [len(merge(found, tiles, rotated=True, iou_rotated=iou)) for iou in (0.5, 0.49)]
    assert kept == [2, 1] == [len(merge(found, tiles, iou_horizontal=iou)) for iou in (0.5, 0.49)]


def test_a_large_object_may_end_a_twentieth_before_the_border_that_cuts_it():
    tiles = tiles_of([(260, 100)], Tiling(100, 20, (1.0, 0.5)))
    whole = one((5, 5, 95, 30), tile=3)  # of the tile that shows 200 x 100 pixels
    assert boxes_of(merge(together(whole, one((10, 10, 96, 60), tile=0)), tiles)) == [[10, 10, 190, 60]]
    assert len(merge(together(whole, one((10, 10, 95, 60), tile=0)), tiles)) == 2  # 5 pixels of 85
