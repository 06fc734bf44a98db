"""Merging with exported detectors: what their export fixed is said where it costs detections."""

from unittest.mock import Mock

import cv2
import numpy as np
import pandas as pd
import pytest
from ultralytics import YOLO

from ds2d2_yolo.datasets import predictions
from ds2d2_yolo.datasets.exported import Fixed, fixed_by_export
from ds2d2_yolo.datasets.predictions import detections_of
from ds2d2_yolo.datasets.tile_tables import Tiled
from ds2d2_yolo.errors import explain
from tests.helpers.checkpoints import narrow_detector, save_checkpoint

KINDS = {  # family, and what is given to the export
    "raw": (None, {"format": "onnx", "simplify": False}),
    "nms": (None, {"format": "onnx", "simplify": False, "nms": True, "conf": 0.3}),
    "end-to-end": ("one-to-one", {"format": "onnx", "simplify": False, "nms": False, "max_det": 5}),
    "torchscript": (None, {"format": "torchscript", "nms": True, "conf": 0.3}),
    "end-to-end torchscript": ("one-to-one", {"format": "torchscript", "nms": False, "max_det": 5}),
}


@pytest.fixture(scope="module", params=KINDS)
def exported(request, tmp_path_factory):
    family, how = KINDS[request.param]
    file = tmp_path_factory.mktemp(request.param) / "best.pt"
    save_checkpoint(file, narrow_detector(family))
    return request.param, YOLO(str(file)).export(imgsz=64, device="cpu", verbose=False, **how)


@pytest.fixture
def tiled(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(3):
        assert cv2.imwrite(str(tmp_path / f"t{i}.png"), rng.integers(0, 255, (64, 64, 3), np.uint8))
    tiles = pd.DataFrame({"tile": [f"t{i}" for i in range(3)]})
    return Tiled({i: f"class{i}" for i in range(3)}, tiles, None, [tmp_path])


def test_what_the_export_fixed_is_said_in_one_line(exported, tiled, monkeypatch):
    kind, model = exported
    logger = Mock()
    monkeypatch.setattr(predictions, "LOGGER", logger)

    def said(**settings):
        logger.reset_mock()
        found = detections_of(model, tiled, imgsz=64, device="cpu", **settings)
        return found, [call.args[0] for call in logger.warning.call_args_list]

    found, lines = said(conf=0.001)
    assert len(found.tile) > 0
    if kind == "raw":
        assert found.scores.min() < 0.3 and not lines
    elif kind.startswith("end-to-end"):
        assert np.bincount(found.tile).tolist() == [5, 5, 5]
        assert len(lines) == 1 and "5 detections in 3 of 3 tiles" in lines[0] and "max_det=1000" in lines[0]
        assert said(conf=0.001, max_det=5)[1] == []
    else:
        assert found.scores.min() > 0.3 and len(lines) == 1
        named = "drops scores up to 0.3: conf=0.001" if kind == "nms" else "its own threshold, 0.25 unless set"
        assert named in lines[0]
        assert said(conf=0.3)[1] == []
        assert len(said(conf=0.2)[1]) == 1


def test_what_is_read_off_the_files(exported):
    kind, model = exported
    fixed = fixed_by_export(model)
    expected = {"raw": Fixed(), "end-to-end": Fixed(most=5, final=True), "torchscript": Fixed(True, final=True)}
    expected["end-to-end torchscript"] = Fixed(final=True)
    assert fixed == expected.get(kind, Fixed(True, pytest.approx(0.3), 300, True))


def test_a_file_of_weights_and_one_of_others_fix_nothing(tmp_path):
    assert fixed_by_export(tmp_path / "best.pt") == Fixed()
    assert fixed_by_export(tmp_path / "other.engine") == Fixed()


def test_a_broken_file_is_said(tmp_path, tiled):
    model = tmp_path / "best.onnx"
    model.write_bytes(b"no model")
    with pytest.raises(TypeError) as refused:
        detections_of(model, tiled)
    assert "best.onnx is not a loadable ONNX model" in explain(refused.value)
