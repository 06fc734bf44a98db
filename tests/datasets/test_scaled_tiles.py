"""Tiles at another scale: smaller ones are averaged, larger ones interpolated."""

import cv2
import numpy as np
import pandas as pd
import pytest

from ds2d2_yolo.datasets import dota
from ds2d2_yolo.datasets.one_image import Options
from ds2d2_yolo.datasets.tiles import Tiling
from tests.datasets.test_convert import large, run  # noqa: F401  a fixture among them


@pytest.mark.parametrize("scale", [0.25, 2.0])
def test_scaled_tiles_are_averaged_and_interpolated(large, tmp_path, scale):  # noqa: F811
    run(large, tmp_path / "out", Options(tiling=Tiling(size=32, overlap=0, scales=(scale,))), dota)
    image = cv2.imread(str(large / "train/images/P0.png")).astype(float)
    tile = pd.read_csv(tmp_path / "out/tiles.csv").query("split == 'train'").iloc[0]
    pixels = cv2.imread(str(tmp_path / f"out/images/train/{tile.tile}.png"))
    shown = image[tile.y : tile.y + tile.height, tile.x : tile.x + tile.width]
    if scale < 1:
        h, w = tile.height // 4, tile.width // 4
        expected = shown[: 4 * h, : 4 * w].reshape(h, 4, w, 4, 3).mean((1, 3))
        assert np.abs(pixels[:h, :w] - expected).max() <= 1
    else:  # between two pixels, a quarter of the way
        expected = 0.75 * shown[:, :-1] + 0.25 * shown[:, 1:]
        expected = 0.75 * expected[:-1] + 0.25 * expected[1:]
        assert np.abs(pixels[1:-2:2, 1:-2:2] - expected).max() <= 1
