"""A released student needs Ultralytics and nothing else; tests of the helper that trainings use to show it."""

import cv2
import numpy as np
import pytest
from ultralytics import YOLO

from ds2d2_yolo.errors import UserError
from ds2d2_yolo.restricted import trusted
from tests.helpers import alone
from tests.helpers.checkpoints import narrow_detector, save_checkpoint


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    paths = [folder / f"{i}.png" for i in range(2)]
    for path in paths:
        cv2.imwrite(str(path), rng.integers(0, 256, (64, 80, 3), np.uint8))
    return paths


def test_a_checkpoint_that_holds_something_of_this_package_does_not(tmp_path, images):
    model = narrow_detector()
    model.note = UserError("an object whose class is not Ultralytics'")
    checkpoint = save_checkpoint(tmp_path / "best.pt", model)
    with trusted(), pytest.raises(AssertionError, match="ds2d2_yolo"):
        alone.assert_loads_alone(checkpoint, images)


def test_boxes_that_differ_are_seen(tmp_path, images, monkeypatch):
    checkpoint = save_checkpoint(tmp_path / "best.pt", narrow_detector())
    results = YOLO(checkpoint).predict(list(map(str, images)), conf=0.01, verbose=False)
    found, moved = ([(result.boxes.data + by).tolist() for result in results] for by in (0, 0.01))
    monkeypatch.setattr(alone, "_boxes_alone", lambda *_: [found, moved])
    with pytest.raises(AssertionError, match="not close"):
        alone.assert_loads_alone(checkpoint, images)
