"""The smallest rectangle around an outline, of any direction."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ds2d2_yolo.datasets.coco_json import smallest_rectangle


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), min_size=3, max_size=12))
def test_smallest_rectangle(points):
    """Against every direction by steps of a quarter degree."""
    points = np.array(points, float)
    corners = smallest_rectangle(points)
    if np.linalg.matrix_rank(points - points[0]) < 2:
        assert corners is None
        return
    angles = np.deg2rad(np.arange(0, 90, 0.25))
    axes = np.stack([np.cos(angles), np.sin(angles), -np.sin(angles), np.cos(angles)], 1).reshape(-1, 2, 2)
    extents = np.ptp(points @ axes.transpose(0, 2, 1), axis=1)
    edges = np.roll(corners, -1, 0) - corners
    area = edges[0, 0] * edges[1, 1] - edges[0, 1] * edges[1, 0]  # positive: clockwise where y points down
    assert 0 < area <= extents.prod(1).min() * (1 + 1e-9)
    np.testing.assert_allclose((edges * np.roll(edges, -1, 0)).sum(1), 0, atol=1e-6)
    for corner, (dx, dy) in zip(corners, edges, strict=True):  # no point lies outside of any edge
        assert (dx * (points[:, 1] - corner[1]) - dy * (points[:, 0] - corner[0]) > -1e-6 * np.hypot(dx, dy)).all()
    assert corners.sum(1).argmin() == 0
