"""What objects and classes the data name, as rating takes them."""

import numpy as np
import pytest

from ds2d2_yolo.errors import UserError
from ds2d2_yolo.report import coco

NAMES = {0: "plane", 1: "ship", 2: "car"}


@pytest.mark.parametrize(
    "model, data, fits",
    [
        (999, NAMES, True),  # an exported file that names none
        (999, {0: "class1", 1: "class0"}, True),
        (2, {0: "class0", 1: "class1"}, True),
        (2, NAMES, False),
        (3, {0: "class1", 1: "class0", 2: "class2"}, False),
        (2, {0: "class0", 1: "class1", 2: "class2"}, False),
    ],
)
def test_names_that_ultralytics_makes_up(model, data, fits):
    names = {i: f"class{i}" for i in range(model)}
    if fits:
        assert coco.check_classes(names, data) is None
        return
    with pytest.raises(UserError, match="differ|knows"):
        coco.check_classes(names, data)


@pytest.mark.parametrize("size", [(640, 640), (800, 800), (1080, 1920), (777, 1023), (6000, 8000)], ids=str)
def test_objects_lie_on_the_pixels_where_they_were_drawn(size):
    """32 x 32 px is COCO's threshold: which side of it an object is on must not be the image size's to say."""
    rng, (height, width) = np.random.default_rng(0), size
    corner = rng.integers(0, [width - 96, height - 96], (500, 2)) / 2
    drawn = np.concatenate([corner, corner + rng.choice([31.5, 32, 95.5, 96], (500, 1))], 1)
    relative = np.concatenate([(drawn[:, :2] + drawn[:, 2:]) / 2, drawn[:, 2:] - drawn[:, :2]], 1)
    relative = (relative / [width, height, width, height]).round(6).astype(np.float32)  # as labels are written and read
    label = {"im_file": "a.png", "cls": np.zeros((500, 1)), "bboxes": relative}
    assert np.array_equal(coco.truth_of([label], np.array([size]), {0: "ship"}).box, drawn)
    off = {**label, "bboxes": relative + np.float32(2e-4)}
    assert not np.isin(coco.truth_of([off], np.array([size]), {0: "ship"}).box, drawn).any()
