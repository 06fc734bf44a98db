"""Both detectors in Ultralytics' own hands: its model class, trainer, embeddings and pictures."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import YAML

from ds2d2_yolo.datasets.demo import prepare
from ds2d2_yolo.detectors.registry import DetectorModel
from tests.detectors.small import CHANNELS, KINDS, detector, found, layout, reloaded
from tests.helpers.checkpoints import save_checkpoint

pytestmark = pytest.mark.parametrize("kind", KINDS)


def test_ultralytics_own_classes_build_the_same_model(kind, tmp_path):
    """``YOLO("...yaml")`` and Ultralytics' own trainer ask for its ``DetectionModel``."""
    YAML.save(tmp_path / "own.yaml", layout(kind))
    saved = save_checkpoint(tmp_path / "best.pt", detector(kind, seed=3))
    image = torch.rand(1, 3, 64, 96)
    for model in (
        YOLO(tmp_path / "own.yaml").load(saved).model,
        YOLO(saved).model,
        DetectionModel(layout(kind), verbose=False),
        DetectionModel(str(tmp_path / "own.yaml"), verbose=False),
    ):
        assert type(model) is DetectorModel and {m.eps for m in model.modules() if hasattr(m, "eps")} == {1e-5}
        model.load(YOLO(saved).model, verbose=False)
        model.model[0] = YOLO(saved).model.model[0]  # whose constants were halved in the file
        assert torch.equal(found(model, image), found(YOLO(saved).model, image))
    plain = DetectionModel("yolov8n.yaml", verbose=False)
    assert type(plain) is type(deepcopy(plain)) is type(reloaded(plain)) is DetectionModel


def test_ultralytics_own_trainer_trains_them(kind, tmp_path):
    data = prepare(tmp_path / "demo", train=4, val=2, size=64)
    nc = len(YAML.load(data)["names"])
    YAML.save(tmp_path / "own.yaml", layout(kind, nc))
    model = YOLO(tmp_path / "own.yaml")
    settings = {"imgsz": 64, "batch": 4, "workers": 0, "plots": False, "device": "cpu", "verbose": False}
    model.train(data=str(data), epochs=1, project=str(tmp_path), name="run", **settings)
    assert type(YOLO(tmp_path / "run/weights/best.pt").model) is DetectorModel
    head = (tmp_path / "run/results.csv").read_text().splitlines()[0]
    assert "train/box_loss" in head and "val/cls_loss" in head


def test_what_ultralytics_shows_of_a_model(kind, tmp_path):
    model = YOLO(save_checkpoint(tmp_path / "best.pt", detector(kind)))
    images = [np.random.default_rng(i).integers(0, 255, (64, 96, 3), np.uint8) for i in range(2)]
    vectors = model.embed(images, imgsz=64, verbose=False)
    assert len(vectors) == 2 and vectors[0].shape == (5 * CHANNELS,) and not torch.equal(*vectors)
    maps = model.model.model[:3](torch.from_numpy(images[0][None, ..., ::-1].copy()).permute(0, 3, 1, 2) / 255)
    several = model.predict(images[:1], imgsz=(64, 96), embed=[0, 2], verbose=False)[0]
    expected = torch.cat([m.mean((2, 3))[0] for m in maps])
    torch.testing.assert_close(several[3:], expected, rtol=1e-3, atol=1e-4)
    model.predict(images[:1], imgsz=64, visualize=True, verbose=False, project=str(tmp_path), name="cam")
    assert [p.name for p in (tmp_path / "cam").iterdir()] == ["image0_cam.jpg"]
