"""Tilings: every pixel is in a tile, every object in one that names it, whole or cut as its share says."""

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from ds2d2_yolo.datasets.tiles import Tiling, areas, bounds, cut, rectangles
from ds2d2_yolo.errors import UserError

sizes = st.integers(1, 3000)
tilings = st.builds(
    lambda size, share, scales: Tiling(size, int(share * size), tuple(scales)),
    st.integers(32, 1200),
    st.floats(0, 0.9),
    st.lists(st.sampled_from([0.25, 0.5, 1.0, 1.5]), min_size=1, max_size=2, unique=True),
)


def frames(tiling, width, height):
    return np.array([window for _, window in tiling.windows(width, height)], float)


def test_the_papers_grid():
    windows = Tiling().windows(2000, 1300)
    assert [w for _, w in windows] == [
        (x, y, x + 1024, y + 1024) for x in (0, 824, 976) for y in (0, 276)
    ]  # 200 px overlap, the last moved back
    assert Tiling().windows(700, 900) == [(1.0, (0, 0, 700, 900))]
    scaled = Tiling(scales=(0.5, 1.0)).windows(2048, 1024)
    assert scaled == [(0.5, (0, 0, 2048, 1024)), (1.0, (0, 0, 1024, 1024)), (1.0, (824, 0, 1848, 1024))] + [
        (1.0, (1024, 0, 2048, 1024))
    ]
    small = (0, 0, 700, 900)  # an image within a tile is there at both scales, too
    assert Tiling(scales=(0.5, 1.0, 1.0)).windows(700, 900) == [(0.5, small), (1.0, small)]
    assert Tiling().file_size(0.5, (0, 0, 2048, 1024)) == (1024, 512)


@settings(max_examples=60, deadline=None)
@given(tilings, sizes, sizes)
def test_every_pixel_is_in_a_tile_at_every_scale(tiling, width, height):
    windows = tiling.windows(width, height)
    assert len(set(windows)) == len(windows)
    for scale in tiling.scales:
        edge = round(tiling.size / scale)
        own = np.array([w for s, w in windows if s == scale])
        assert (own[:, :2] >= 0).all() and (own[:, 2:] <= (width, height)).all()
        assert (own[:, 2:] - own[:, :2] <= edge).all() and (own[:, 2:] > own[:, :2]).all()
        assert shapely.union_all(shapely.box(*own.T)).area == pytest.approx(width * height)


@st.composite
def scenes(draw):
    width, height = draw(st.integers(64, 900)), draw(st.integers(64, 900))
    number = draw(st.integers(0, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    centre = rng.uniform((0, 0), (width, height), (number, 2))
    half = rng.uniform(1, 150, (number, 2)) / 2
    angle = rng.uniform(0, np.pi, number)
    turn = np.stack([np.cos(angle), np.sin(angle), -np.sin(angle), np.cos(angle)], 1).reshape(-1, 2, 2)
    offsets = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])[None] * half[:, None]
    return width, height, centre[:, None] + offsets @ turn


@settings(max_examples=80, deadline=None)
@given(scenes(), st.integers(64, 300), st.floats(0, 0.8), st.floats(0, 1), st.booleans())
def test_no_object_is_lost_doubled_or_moved(scene, size, share, keep, rotated):
    width, height, corners = scene
    windows = frames(Tiling(size, int(size * share)), width, height)
    pieces, best = cut(corners, windows, keep, rotated, (width, height))
    image = shapely.box(0, 0, width, height)
    shapes = [shapely.Polygon(c) for c in corners]
    named = np.zeros(len(corners), int)
    for (indices, parts), window in zip(pieces, windows, strict=True):
        assert len(set(indices.tolist())) == len(indices)  # not twice in a tile
        frame = shapely.box(*window)
        for i, part in zip(indices, parts, strict=True):
            named[i] += 1
            inside = shapes[i].intersection(image)
            left = shapes[i].intersection(frame).area / inside.area
            assert left >= min(keep, 0.999) - 1e-6 or left == pytest.approx(best[i])
            assert (part >= window[:2] - 1e-9).all() and (part <= window[2:] + 1e-9).all()
            if shapes[i].within(frame):
                expected = corners[i] if rotated else rectangles(bounds(corners[i : i + 1]))[0]
                np.testing.assert_allclose(part, expected, atol=1e-6)
            elif not rotated:
                np.testing.assert_allclose(bounds(part[None])[0], shapes[i].intersection(frame).bounds, atol=1e-6)
    for i, shape in enumerate(shapes):
        assert (named[i] > 0) == (shape.intersection(image).area > 0)
        enough = [shape.intersection(shapely.box(*w)).area / shape.intersection(image).area for w in windows]
        assert named[i] >= sum(e > keep + 1e-6 for e in enough)


def test_what_is_cut_is_kept_by_its_share():
    corners = rectangles([[90, 10, 130, 20]])  # 10 of 40 in the left tile, 30 in the right
    windows = np.array([[0, 0, 100, 100], [100, 0, 200, 100]], float)
    for keep, expected in ((0.2, [1, 1]), (0.3, [0, 1]), (0.75, [0, 1]), (0.76, [0, 1]), (1.0, [0, 1])):
        pieces, best = cut(corners, windows, keep, False)
        assert [len(i) for i, _ in pieces] == expected, keep
        assert best.tolist() == [0.75]
    assert bounds(cut(corners, windows, 0.2, False)[0][0][1]).tolist() == [[90, 10, 100, 20]]


def test_what_reaches_over_the_image_counts_as_far_as_it_is_inside():
    corners = rectangles([[-30, 0, 10, 10]])
    windows = np.array([[0, 0, 100, 100], [8, 0, 108, 100]], float)
    assert [len(i) for i, _ in cut(corners, windows, 0.7, False, (108, 100))[0]] == [1, 0]
    assert cut(corners, windows, 0.7, False, (108, 100))[1].tolist() == [1.0]


def test_crossed_corners_have_an_area():
    bow_tie = np.array([[(0, 0), (10, 10), (10, 0), (0, 10)]], float)
    assert areas(bow_tie).tolist() == [100]
    pieces, _ = cut(bow_tie, np.array([[0, 0, 20, 20]], float), 0.7, False)
    assert bounds(pieces[0][1]).tolist() == [[0, 0, 10, 10]]


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"size": 16}, "size=16"),
        ({"overlap": 1024}, "overlap=1024"),
        ({"overlap": -1}, "overlap=-1"),
        ({"scales": ()}, "scales="),
        ({"scales": (1.0, 0.0)}, "scales=1.0,0.0"),
        ({"keep": 1.5}, "keep=1.5"),
        ({"empty": -0.1}, "empty=-0.1"),
        ({"format": "gif"}, "format=gif"),
    ],
)
def test_settings_out_of_range(wrong, says):
    with pytest.raises(UserError, match=says):
        Tiling(**wrong)


def test_an_object_half_in_each_of_two_windows():
    """The share that is asked for is enough; where none has it, the first of those with most names it."""
    corners, windows = rectangles([(50, 20, 70, 40)]), np.array([(0, 0, 60, 60), (60, 0, 120, 60)])
    for keep, naming in ((0.5, [1, 1]), (0.6, [1, 0])):
        pieces, best = cut(corners, windows, keep, rotated=False)
        assert [len(indices) for indices, _ in pieces] == naming and best.tolist() == [0.5]
    windows = windows[::-1]
    assert [len(indices) for indices, _ in cut(corners, windows, 0.6, rotated=False)[0]] == [1, 0]


def test_tiles_of_another_scale_overlap_by_as_many_pixels_of_the_tile():
    windows = Tiling(100, 20, (0.5,)).windows(400, 200)
    assert [window for _, window in windows] == [(x, 0, x + 200, 200) for x in (0, 160, 200)]
