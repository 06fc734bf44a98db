"""A detector rated from its checkpoint and from its ONNX file."""

import cv2
import numpy as np
import onnx
import pytest
import torch
import yaml
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel

from ds2d2_yolo.datasets.demo import prepare
from ds2d2_yolo.errors import UserError
from ds2d2_yolo.report.coco import evaluate
from ds2d2_yolo.report.tables import comparison
from tests.end_to_end.conftest import _convolutions


@pytest.fixture
def checkpoint(tmp_path):
    """A detector that was never trained, made sure of itself so that its detections do not hang on rounding."""
    torch.manual_seed(0)
    small = _convolutions(tmp_path / "small.yaml", (8, 12, 16, 24, 32))
    model = DetectionModel(str(small), nc=1, verbose=False)
    for _ in range(20):
        model.train()(torch.rand(2, 3, 96, 96))
    with torch.no_grad():
        for boxes, scores in zip(model.model[-1].cv2, model.model[-1].cv3, strict=True):
            boxes[-1].bias.view(4, 16).copy_(torch.rand(4, 16) - torch.arange(16))  # small ones, inside the image
            scores[-1].weight *= 100
    model.names, model.args, model.task = {0: "object"}, {}, "detect"
    torch.save({"model": model.eval(), "train_args": {}}, tmp_path / "best.pt")
    return tmp_path / "best.pt"


@pytest.fixture
def own_finds(tmp_path, checkpoint):
    """Drawn scenes whose labels are the checkpoint's own five surest detections: a truth that it meets in full."""
    data = prepare(tmp_path / "demo", train=1, val=4, size=96)
    asked = {"imgsz": 96, "conf": 1e-5, "iou": 0.3, "max_det": 5, "device": "cpu"}
    for file in sorted((data.parent / "images/val").iterdir()):
        found = YOLO(checkpoint).predict(cv2.imread(str(file)), verbose=False, rect=False, **asked)[0].boxes.xywhn
        rows = "".join("0 " + " ".join(f"{v:.7f}" for v in box) + "\n" for box in found.tolist())
        (data.parent / f"labels/val/{file.stem}.txt").write_text(rows)
    data.write_text(yaml.safe_dump({"train": "images/train", "val": "images/val", "names": ["object"]}))
    return data, asked


def test_checkpoint_and_onnx_file_get_the_same_rating(checkpoint, own_finds, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo/labels/train/train_0000.txt").write_text("")
    data, asked = own_finds
    exported = YOLO(checkpoint).export(format="onnx", imgsz=96, device="cpu")
    first, second = evaluate(checkpoint, data, rect=False, **asked), evaluate(exported, data, **asked)
    assert first.images == second.images == 4 and first.objects == second.objects > 8
    assert (first.ap, first.ap50) == pytest.approx((100, 100))
    assert (second.ap, second.ap50) == pytest.approx((100, 100), abs=1)
    assert first.parameters == pytest.approx(second.parameters, rel=1e-4)  # equal tensors are stored once in the file
    assert "(+0.00)" in str(comparison({"checkpoint": first, "onnx": second}, teacher="checkpoint"))
    assert np.isnan(evaluate(exported, data, **{**asked, "split": "train"}).ap)

    bare = without_metadata(exported)
    third = evaluate(bare, data, **{**asked, "imgsz": 640, "batch": 4})  # the file's own size is what counts
    assert (third.ap, third.parameters) == pytest.approx((second.ap, second.parameters))
    data.write_text(data.read_text().replace("- object", "- object\n- other"))
    with pytest.raises(UserError, match="bare.onnx' tells 1 classes apart, and the data have 2"):
        evaluate(bare, data, **asked)


def without_metadata(exported):
    """A copy of an exported file as another program would have written it: nothing but the graph."""
    model = onnx.load(exported)
    del model.metadata_props[:]
    path = exported.replace("best.onnx", "bare.onnx")
    onnx.save(model, path)
    return path
