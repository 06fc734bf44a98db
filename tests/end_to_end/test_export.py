"""Exports for real, by format, head and option: each file is compared with PyTorch, and each comparison can fail."""

import cv2
import numpy as np
import onnx
import pytest
import torch
from ultralytics.cfg import get_cfg
from ultralytics.nn.distill_model import DistillationModel

from ds2d2_yolo import exporting
from ds2d2_yolo.errors import UserError
from ds2d2_yolo.report.agreement import Selection
from ds2d2_yolo.report.exported import check
from tests.helpers.checkpoints import narrow_detector, save_checkpoint
from tests.helpers.distilling import tiny_retinanet


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for i in range(3):
        cv2.imwrite(str(folder / f"{i}.png"), rng.integers(0, 256, (48, 64, 3), np.uint8))
    return folder


OPTIONS = {
    "dynamic": {"dynamic": True},
    "batch": {"batch": 2, "imgsz": [64, 96]},
    "nms": {"nms": True, "conf": 0.1},
    "nms-dynamic": {"nms": True, "conf": 0.1, "dynamic": True, "batch": 2},
    "nms-agnostic": {"nms": True, "conf": 0.1, "agnostic_nms": True, "iou": 0.4},
    "end2end": {"nms": False},
    "end2end-dynamic": {"end2end": True, "dynamic": True},
}
# A whole model of a family takes the longest to export, so that one of a few layers stands for all but one of each
ON_ONNX = [
    ("yolo11", "nms"),
    ("yolo26", "end2end-dynamic"),
    *(("one-to-one", options) for options in ("dynamic", "batch", "nms-dynamic")),
]
ON_TORCHSCRIPT = [("yolo26", "dynamic"), ("one-to-one", "nms-agnostic"), ("one-to-one", "end2end")]


@pytest.mark.parametrize(("family", "options"), ON_ONNX)
def test_onnx(tmp_path, images, family, options, capsys):
    checkpoint = save_checkpoint(tmp_path / "best.pt", narrow_detector(family))
    exporting.run({"model": checkpoint, "images": images, "simplify": False, **OPTIONS[options]})
    assert "best.onnx: checked on 3 images: boxes differ by" in capsys.readouterr().out


@pytest.mark.parametrize(("family", "options"), ON_TORCHSCRIPT)
def test_torchscript(tmp_path, images, family, options, capsys):
    checkpoint = save_checkpoint(tmp_path / "best.pt", narrow_detector(family))
    exporting.run({"model": checkpoint, "images": images, "format": "torchscript", **OPTIONS[options]})
    assert "best.torchscript: checked on 3 images: boxes differ by" in capsys.readouterr().out


@pytest.mark.parametrize(("options", "branch"), [("nms", "cv2"), ("end2end", "cv3")])
def test_another_model_is_told_apart_where_detections_are_compared(tmp_path, images, options, branch, monkeypatch):
    def convert_another(yolo, *args):
        made = convert(yolo, *args)
        prefix = "one2one_" if options == "end2end" else ""
        with torch.no_grad():
            for layers in getattr(yolo.model.model[-1], prefix + branch):
                layers[-1].bias += 0.02
        return made

    convert = exporting._convert
    monkeypatch.setattr(exporting, "_convert", convert_another)
    checkpoint = save_checkpoint(tmp_path / "best.pt", narrow_detector("one-to-one"))
    with pytest.raises(UserError, match="disagrees with PyTorch"):
        exporting.run({"model": checkpoint, "images": images, "format": "torchscript", **OPTIONS[options]})


def test_nms_with_another_threshold_is_told_apart(tmp_path, images):
    checkpoint = save_checkpoint(tmp_path / "best.pt", narrow_detector())
    path = exporting.run(
        {"model": checkpoint, "images": images, "format": "torchscript", "nms": True, "conf": 0.1, "iou": 0.7}
    )
    student = exporting._load(checkpoint).model
    pictures = [cv2.imread(str(image)) for image in sorted(images.iterdir())]
    same, other = (Selection(iou, 0.1, 300) for iou in (0.7, 0.3))
    assert check(path, "torchscript", student, pictures, (64, 64), same).unmatched == 0
    assert check(path, "torchscript", student, pictures, (64, 64), other).unmatched > 0


def test_a_detectors_nms_with_another_threshold_is_told_apart(tmp_path, images):
    detector = tiny_retinanet()
    path = exporting.run({"model": save_checkpoint(tmp_path / "best.pt", detector), "images": images, "conf": 0.1})
    student = exporting._load(tmp_path / "best.pt").model
    pictures, options = [cv2.imread(str(image)) for image in sorted(images.iterdir())], student.model[-1].options
    for nms_iou, alike in ((0.5, True), (0.2, False)):
        options.score, options.nms_iou = 0.1, nms_iou
        found = check(path, "onnx", student, pictures, (64, 64), Selection())
        assert found.close == alike and found.compared > 10 and (found.unmatched > 0) != alike
    assert options.nms_iou == 0.2  # the comparison has a copy of its own


def test_half_precision_is_reported_not_refused(tmp_path, images, capsys):
    checkpoint = save_checkpoint(tmp_path / "best.pt", narrow_detector())
    path = exporting.run({"model": checkpoint, "images": images, "half": True})
    assert "(reduced precision, for information only)" in capsys.readouterr().out
    kinds = {tensor.data_type for tensor in onnx.load(path).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds


def test_integers_are_calibrated_on_the_data_set_of_the_checkpoint(tmp_path, images, capsys):
    data = tmp_path / "my.yaml"
    data.write_text(f"path: {images.parent}\ntrain: {images.name}\nval: {images.name}\nnames: [a, b, c]\n")
    checkpoint = save_checkpoint(tmp_path / "best.pt", narrow_detector(), data=str(data))
    path = exporting.run({"model": checkpoint, "int8": True})
    assert path.name == "best_int8.onnx"
    assert "(reduced precision, for information only)" in capsys.readouterr().out
    assert any(node.op_type == "QuantizeLinear" for node in onnx.load(path).graph.node)


def test_of_an_interrupted_distillation_the_student_is_exported(tmp_path, images):
    student, teacher = narrow_detector(), narrow_detector("yolov8", seed=1)
    student.args = get_cfg(overrides={"imgsz": 64})
    pair = DistillationModel(teacher, student)
    last = save_checkpoint(tmp_path / "last.pt", pair, key="ema")
    plain = save_checkpoint(tmp_path / "plain.pt", student)
    exported, expected = (
        onnx.load(exporting.run({"model": path, "images": images, "simplify": False})) for path in (last, plain)
    )
    assert exported.graph == expected.graph
