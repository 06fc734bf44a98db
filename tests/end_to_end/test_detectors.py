"""RetinaNet and Faster R-CNN through the same doors as any YOLO: learn, distil, resume, validate, predict, export."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from ultralytics import YOLO
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils import YAML

from ds2d2_yolo import cli
from ds2d2_yolo.datasets import demo
from ds2d2_yolo.detectors.registry import DetectorModel
from ds2d2_yolo.engine.trainer import DS2D2Trainer
from ds2d2_yolo.report.coco import evaluate, predict
from ds2d2_yolo.report.rating import rate
from tests.helpers.training import TERMS, hang_in, listening, one_error, packages, resume, rows, train

pytestmark = pytest.mark.slow

EASY = {"warmup_epochs": 0, "mosaic": 0, "scale": 0, "translate": 0, "fliplr": 0, "hsv_h": 0, "hsv_s": 0, "hsv_v": 0}
SIZE = {"imgsz": 96, "batch": 4, "nbs": 4, "backbone_weights": "none", "cache": "ram"}
# Of a fresh backbone and FPN over strides 4 to 32; smaller anchors than the paper's, for the scenes are small
HEADS = {
    "retinanet": ("RetinaNetDetect", {"octave_scale": 2.5, "scales_per_octave": 2}),
    "faster-rcnn": (
        "FasterRCNNDetect",
        {"anchor_scale": 3, "roi_levels": 3, "fc": 128, "roi_samples": 128, "proposals": 300, "test_proposals": 300},
    ),
}
FAST = {
    "retinanet": {"epochs": 50, "lr0": 0.002},
    "faster-rcnn": {"epochs": 25, "lr0": 0.001, "batch": 2, "nbs": 2},
}
# AP50 in points on the scenes it learned from: measured 12 and 31; untrained 0
LEARNED = {"retinanet": 5.0, "faster-rcnn": 15.0}


def small_detector(path, family, channels):
    head, options = HEADS[family]
    layers = [
        [-1, 1, "FPN", [[64, 128, 256], channels, "pool"]],
        [-1, 1, head, ["nc", channels, {"strides": [4, 8, 16, 32], **options}]],
    ]
    backbone = [[-1, 1, "Normalize", ["ch"]], [-1, 1, "ResNet", ["resnet10", "ch", [1, 2, 3]]]]
    YAML.save(path, {"nc": 5, "backbone": backbone, "head": layers})
    return path


@pytest.fixture(scope="module")
def learned_scenes(tmp_path_factory):
    """Four scenes; what is learned from them is also measured on them."""
    data = demo.prepare(tmp_path_factory.mktemp("learned") / "scenes", train=4, val=2, size=96)
    again = data.with_name("again.yaml")
    YAML.save(again, {**YAML.load(data), "path": str(data.parent), "val": "images/train"})
    return again


@pytest.fixture(scope="module", params=sorted(HEADS))
def taught(request, tmp_path_factory, learned_scenes):
    """A teacher that has learned the scenes, and a narrower student distilled from it for two epochs."""
    folder, family = tmp_path_factory.mktemp(request.param), request.param
    seen = SimpleNamespace(family=family, folder=folder, data=learned_scenes)
    seen.teacher = folder / "teacher" / "weights" / "best.pt"
    seen.student = folder / "student" / "weights" / "best.pt"
    seen.model = small_detector(folder / "small.yaml", family, 32)
    common = {"data": learned_scenes, **SIZE, **EASY}
    large = small_detector(folder / "large.yaml", family, 48)
    fast = {**common, **FAST[family], "cos_lr": True, "val": False, "save": False}
    assert train(folder, name="teacher", model=large, **fast) == 0
    with listening() as seen.log:
        distil = {"teacher": seen.teacher, "amplifier_epochs": 1, "epochs": 2, "distill_warmup": 0}
        assert train(folder, name="student", model=seen.model, **common, **distil) == 0
    return seen


def test_it_learns(taught):
    seen = predict(taught.teacher, taught.data, imgsz=96, verbose=False)
    assert rate(seen.truth, seen.found, seen.max_det).ap50 > LEARNED[taught.family]
    assert (seen.floor, seen.overlap) == (0.05, 0.5) and seen.found.score.min() > 0.05  # whatever conf= says


def test_the_four_terms_act(taught):
    for row in rows(taught.folder / "student"):
        assert all(0 < row[f"train/{name}"] < 1e4 for name in TERMS)
        assert all(0 < row[f"share/{name}"] < 1 for name in TERMS)
    assert any("stage 1 of 2" in line for line in taught.log)


def test_the_released_student_is_a_plain_detector(taught):
    model, ckpt = load_checkpoint(taught.student)
    assert type(model) is DetectorModel
    assert ckpt["optimizer"] is None
    assert not [k for k in model.state_dict() if "teacher" in k or "projector" in k]
    assert "ds2d2_yolo" in packages(taught.student)
    fresh = DetectorModel(str(taught.model), nc=5, verbose=False)
    assert model.state_dict().keys() == fresh.state_dict().keys()


def test_yolo_predicts_and_validates_with_it(taught):
    yolo = YOLO(taught.teacher)
    results = yolo.predict(taught.data.parent / "images" / "train", imgsz=96, conf=0.2, verbose=False, save=False)
    found = torch.cat([r.boxes.data for r in results])
    assert len(found)
    assert found[:, :4].min() >= 0
    assert found[:, :4].max() <= 96
    assert (found[:, 4] > 0.2).all()
    metrics = yolo.val(data=str(taught.data), imgsz=96, batch=2, verbose=False, plots=False)
    assert metrics.box.map50 > 0


def test_another_process_loads_it_without_importing_this_package(taught):
    source = sorted((taught.data.parent / "images" / "train").iterdir())[0]
    code = (
        "import sys; from ultralytics import YOLO; found = YOLO(sys.argv[1]).predict(sys.argv[2], imgsz=96, conf=0.2)"
    )
    code += "; print('boxes', len(found[0].boxes))"
    theirs = {k: v for k, v in os.environ.items() if k != "ULTRALYTICS_SAFE_LOAD"}  # set by this package
    command = [sys.executable, "-c", code, taught.teacher, source]
    ended = subprocess.run(command, capture_output=True, text=True, env=theirs)
    own = YOLO(taught.teacher).predict(source, imgsz=96, conf=0.2, verbose=False, save=False)
    assert f"boxes {len(own[0].boxes)}\n" in ended.stdout, ended.stderr
    assert len(own[0].boxes)


@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
def test_the_exported_file_has_the_ap_of_the_checkpoint(taught, capsys, kind):
    images = taught.data.parent / "images" / "train"
    settings = [f"format={kind}", "dynamic=True", "imgsz=96", f"images={images}"]  # static: no padded border
    assert cli.export([f"model={taught.teacher}", *settings]) == 0
    assert f"best.{kind}: checked on 4 images: boxes differ by at most" in capsys.readouterr().out
    torch_ap, file_ap = (
        evaluate(taught.teacher.with_suffix(s), taught.data, imgsz=96, batch=4, verbose=False)
        for s in (".pt", f".{kind}")
    )
    assert file_ap.ap50 == pytest.approx(torch_ap.ap50, abs=0.1)
    assert file_ap.ap == pytest.approx(torch_ap.ap, abs=0.1)


def test_an_interrupted_run_goes_on(taught, monkeypatch, capsys):
    def interrupt(trainer):
        if type(trainer) is DS2D2Trainer and trainer.epoch == 0:
            raise KeyboardInterrupt

    hang_in(monkeypatch, "on_model_save", interrupt)
    settings = {"data": taught.data, "model": taught.model, "teacher": taught.teacher, "epochs": 2, **SIZE, **EASY}
    assert train(taught.folder, name="cut", amplifier_epochs=1, **settings) == 130
    monkeypatch.undo()
    last = taught.folder / "cut" / "weights" / "last.pt"
    assert f"resume={last}" in capsys.readouterr().err
    assert resume(last) == 0
    assert [row["epoch"] for row in rows(taught.folder / "cut")] == [1, 2]


def test_a_yolo_student_learns_from_it_or_says_why_not(taught, small, capsys):
    settings = {"data": taught.data, "model": small, "teacher": taught.teacher, "epochs": 1, **SIZE, **EASY}
    code = train(taught.folder, name="yolo", amplifier_epochs=1, **settings)
    if taught.family == "retinanet":
        assert code == 0
        assert all(row[f"train/{name}"] > 0 for row in rows(taught.folder / "yolo") for name in TERMS)
        return
    assert code == 2
    assert "im_full=0 im_high=0" in one_error(capsys)
    assert train(taught.folder, name="yolo", im_full=0, im_high=0, **settings) == 0


def test_weights_that_cannot_be_fetched_say_what_else_to_do(tmp_path, learned_scenes, capsys):
    model = small_detector(tmp_path / "model.yaml", "retinanet", 16)
    settings = {"data": learned_scenes, "model": model, "epochs": 1, **SIZE, "backbone_weights": "imagenet"}
    assert train(tmp_path, name="never", **settings) == 2
    assert "backbone_weights=none" in one_error(capsys)
    assert not (tmp_path / "never").exists()
