"""What models are rated at and by: sizes that their strides divide, class names, and times that belong to them."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import yaml
from ultralytics.nn.tasks import DetectionModel

from ds2d2_yolo import val
from ds2d2_yolo.errors import UserError
from ds2d2_yolo.report.bundle import Bundle
from ds2d2_yolo.report.coco import check_classes, predict

NAMES = {0: "plane", 1: "ship", 2: "car"}
P6 = {  # the finer of two levels takes in the coarser one, whose stride is 64
    "nc": 3,
    "backbone": [[-1, 1, "Conv", [8, 3, 2]] for _ in range(6)],
    "head": [
        [-1, 1, "nn.Upsample", [None, 2, "nearest"]],
        [[-1, 4], 1, "Concat", [1]],
        [[7, 5], 1, "Detect", ["nc"]],
    ],
}


@pytest.fixture
def data(tmp_path):
    for part in ("images", "labels"):
        (tmp_path / part / "val").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "images/val/0.png"), np.random.default_rng(0).integers(0, 255, (96, 64, 3), np.uint8))
    (tmp_path / "labels/val/0.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    text = yaml.safe_dump({"train": "images/val", "val": "images/val", "names": NAMES})
    (tmp_path / "data.yaml").write_text(text)
    return tmp_path / "data.yaml"


def coarse(names=NAMES):
    torch.manual_seed(0)
    model = DetectionModel(P6, nc=len(names), verbose=False)
    model.names, model.args, model.task = dict(names), {}, "detect"
    return model.eval()


@pytest.mark.parametrize(("imgsz", "taken"), [(96, 128), (128, 128)])
def test_square_images_are_of_a_size_that_the_models_stride_divides(data, imgsz, taken):
    seen = predict(coarse(), data, imgsz, device="cpu", rect=False)
    assert seen.imgsz == (taken, taken) and seen.rect is False


def test_other_names_are_remembered(data):
    seen = predict(coarse({0: "person", 1: "ship", 2: "car"}), data, 64, device="cpu")
    assert seen.doubt == "class names of model and data differ, taken by number: plane"


def test_class_names_may_differ_or_be_unknown_but_not_be_out_of_place():
    said = "class names of model and data differ, taken by number: plane, ship"
    assert check_classes({0: "aeroplane", 1: "boat", 2: "car"}, NAMES) == said
    for known, there in (
        ({i: f"class{i}" for i in range(999)}, NAMES),
        ({**NAMES, 3: "truck"}, NAMES),
        ({0: "car", 1: "car", 2: "ship"}, {0: "car", 1: "car", 2: "ship"}),
    ):
        assert check_classes(known, there) is None
    assert check_classes({0: "object"}, NAMES, single=True) is None
    with pytest.raises(UserError):
        check_classes({0: "car", 1: "ship", 2: "plane"}, NAMES)


@pytest.mark.parametrize("turned", [False, True])
def test_a_file_timed_beside_its_checkpoint_is_no_model_of_its_own(tmp_path, monkeypatch, turned):
    """Both are timed either way; whose times are kept is another matter."""
    files = {name: str(tmp_path / name) for name in ("data.yaml", "a.pt", "b.pt", "a.onnx")}
    for file in files.values():
        open(file, "w").close()
    bundle, timed = Bundle(tmp_path / "report", {"data": files["data.yaml"]}), []

    def measure(models, images, size, batch, device, onnx, **options):
        timed.append(len(models))
        return [val_cost(len(timed)) for _ in models]

    monkeypatch.setattr(val, "measure_all", measure)
    monkeypatch.setattr(val, "asdict", vars)
    own, asked = {"rounds": 1}, {"data": files["data.yaml"], "batch": 1, "imgsz": 64}
    truth = SimpleNamespace(images=())
    beside = ({"a": files["a.pt"], "b": files["b.pt"]}, {files["a.pt"]: files["a.onnx"]})
    apart = ({"a": files["a.pt"], "b": files["b.pt"], "a.onnx": files["a.onnx"]}, {})
    for times, (names, exported) in enumerate((apart, beside) if turned else (beside, apart), 1):
        for _ in range(2):  # the second time they are kept
            costs = val._costs(bundle, names, exported, truth, own, asked)
            assert list(costs) == list(names) and {cost["time"] for cost in costs.values()} == {times}
    assert timed == ([3, 2] if turned else [2, 3])


def val_cost(time):
    return SimpleNamespace(time=time)
