"""Tables beside tiles, and parts of detections in them that are kept."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from ds2d2_yolo.datasets.predictions import Detections, _load, _save, _thresholds
from ds2d2_yolo.datasets.tile_tables import CORNERS, _objects


@pytest.mark.parametrize(
    "flag, difficult", [("1", True), ("True", True), ("true", True), ("0", False), ("False", False)]
)
def test_a_flag_of_the_table_in_words(tmp_path, flag, difficult):
    row = ["val", "a", "ship", flag, *range(8)]
    pd.DataFrame([row], columns=["split", "image", "class", "difficult", *CORNERS]).to_csv(
        tmp_path / "o.csv", index=False
    )
    assert _objects(tmp_path / "o.csv", [Path("images/val")], {0: "ship"})["difficult"].tolist() == [difficult]


def test_an_object_detector_of_rotated_boxes_has_its_own_least_score():
    found = {task: _thresholds(SimpleNamespace(task=task, model=None), None, None) for task in ("detect", "obb")}
    assert found == {"detect": (0.001, 0.7), "obb": (0.01, 0.7)}


def test_a_part_of_other_tiles_is_made_again(tmp_path):
    held = Detections(np.array([500, 999]), np.zeros(2, int), np.ones(2), np.zeros((2, 4, 2)))
    _save(tmp_path / "a.npz", held)
    assert _load(tmp_path / "a.npz", 500, 1000).tile.tolist() == [500, 999]
    assert _load(tmp_path / "a.npz", 501, 1000) is None and _load(tmp_path / "a.npz", 500, 999) is None
