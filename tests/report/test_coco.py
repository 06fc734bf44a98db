import itertools
import json
import math
import os
from copy import deepcopy
from dataclasses import fields
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import yaml
from ultralytics.nn.tasks import ClassificationModel, DetectionModel
from ultralytics.utils import nms

from ds2d2_yolo import errors
from ds2d2_yolo.errors import UserError
from ds2d2_yolo.report import coco
from tests.detectors import small
from tests.helpers.checkpoints import FEW_LAYERS
from tests.helpers.training import listening

NAMES = {0: "plane", 1: "ship", 2: "car"}


@pytest.fixture
def scenes(tmp_path):
    """Five images of different sizes, the fourth empty; 'car' never appears."""
    rng = np.random.default_rng(1)
    for i, (h, w) in enumerate([(96, 160), (120, 64), (77, 131), (64, 64), (200, 210)]):
        for split in ("train", "val"):
            for part in ("images", "labels"):
                (tmp_path / part / split).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / f"images/{split}/{i}.png"), rng.integers(0, 255, (h, w, 3), np.uint8))
            count = 0 if i == 3 else 6
            centre, size = rng.uniform(0.25, 0.75, (count, 2)), rng.uniform(0.08, 0.4, (count, 2))
            rows = np.concatenate([np.arange(count)[:, None] % 2, centre, size], 1)
            lines = "".join(f"{int(r[0])} " + " ".join(map(str, r[1:])) + "\n" for r in rows)
            (tmp_path / f"labels/{split}/{i}.txt").write_text(lines)
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"train": "images/train", "val": "images/val", "names": NAMES}))
    return tmp_path


def detector(names=NAMES, kind=None):
    torch.manual_seed(0)
    few = {**deepcopy(FEW_LAYERS), "end2end": True, "reg_max": 1}
    model = DetectionModel(kind or few, nc=len(names), verbose=False)
    model.names, model.args, model.task = dict(names), {}, "detect"
    return model.eval()


@pytest.fixture
def log():
    """What is logged meanwhile, a line each."""
    with listening() as lines:
        yield lines


def told(monkeypatch, answer):
    """Lets the validator report `answer(boxes xyxy, classes)` of the letterboxed truth in place of predictions."""
    seen = []

    class Told(coco.CocoValidator):
        def update_metrics(self, preds, batch):
            seen.append(self)
            told = []
            for i in range(len(preds)):
                truth = self._prepare_batch(i, batch)
                boxes, conf, cls = answer(truth["bboxes"].reshape(-1, 4), truth["cls"])
                told.append({"bboxes": boxes, "conf": conf, "cls": cls, "extra": boxes[:, :0]})
            super().update_metrics(told, batch)

    monkeypatch.setattr(coco, "CocoValidator", Told)
    return seen


@pytest.mark.parametrize(("imgsz", "batch", "rect"), [(64, 2, True), (160, 1, False), (96, 8, True)])
def test_letterboxed_detections_come_back_to_the_original_images(scenes, monkeypatch, imgsz, batch, rect):
    told(monkeypatch, lambda boxes, cls: (boxes, torch.full_like(cls, 0.8), cls))
    result = coco.evaluate(detector(), scenes / "data.yaml", imgsz=imgsz, batch=batch, device="cpu", rect=rect)
    assert (result.images, result.objects) == (5, 24)
    assert result.ap == pytest.approx(100, abs=0.01) and result.ap50 == 100
    assert [c.objects for c in result.classes] == [12, 12, 0] and math.isnan(result.classes[2].ap)


def test_detections_of_classes_that_were_not_asked_for_do_not_count(scenes, monkeypatch):
    """A detector that finds everything is right about every class, asked for one alone."""
    told(
        monkeypatch,
        lambda boxes, cls: (boxes.repeat(2, 1), torch.full((2 * len(cls),), 0.8), torch.cat([cls, 1 - cls])),
    )
    answered = coco.predict(detector(), scenes / "data.yaml", 96, device="cpu", classes=[0])
    assert set(answered.found.cls) == {0} and set(answered.truth.cls) == {0}
    result = coco.evaluate(detector(), scenes / "data.yaml", imgsz=96, device="cpu", classes=1)
    assert result.objects == 12 and result.ap50 == 100


def test_a_model_of_one_class_knows_those_merged_into_it_by_another_number(scenes, monkeypatch):
    told(monkeypatch, lambda boxes, cls: (boxes, torch.full_like(cls, 0.8), torch.zeros_like(cls)))
    one = detector({0: "item"})
    result = coco.evaluate(one, scenes / "data.yaml", imgsz=96, device="cpu", classes=1, single_cls=True)
    assert result.objects == 12 and result.ap50 == 100
    merged = coco.evaluate(one, scenes / "data.yaml", imgsz=96, device="cpu", single_cls=True)
    assert [kind.name for kind in merged.classes] == ["item"]


def test_a_busy_machine_costs_no_detections(scenes, monkeypatch):
    """Ultralytics' NMS gives up after a while, and leaves the rest of its batch without boxes."""
    expected = coco.predict(detector(kind="yolov8n.yaml"), scenes / "data.yaml", 96, device="cpu", batch=4).found
    assert len(expected)
    seconds = itertools.count(step=100)
    monkeypatch.setattr(nms, "time", SimpleNamespace(time=lambda: next(seconds)))
    found = coco.predict(detector(kind="yolov8n.yaml"), scenes / "data.yaml", 96, device="cpu", batch=4).found
    assert next(seconds) > 500  # it has looked at the clock
    assert np.array_equal(found.score, expected.score)


@pytest.mark.parametrize("kind", small.KINDS)
def test_where_all_classes_are_one_no_object_is_found_twice(kind, scenes):
    """These heads have NMS inside, which Ultralytics tells nothing of single_cls."""
    model = small.detector(kind)
    model.names = NAMES
    model.eval()

    def count(**settings):
        return len(coco.predict(deepcopy(model), scenes / "data.yaml", 96, device="cpu", **settings).found)

    assert count() > count(single_cls=True) == count(single_cls=True, agnostic_nms=True) > 0


def test_small_is_measured_in_the_original_image(scenes, monkeypatch):
    """At imgsz=64 every object is small; in the files the 200 x 210 image's are up to 80 px."""
    told(monkeypatch, lambda boxes, cls: (boxes, torch.full_like(cls, 0.8), cls))
    result = coco.evaluate(detector(), scenes / "data.yaml", imgsz=64, device="cpu")
    assert result.ap_medium == pytest.approx(100, abs=0.5) and math.isnan(result.ap_large)


def test_agrees_with_ultralytics_own_map(scenes, monkeypatch):
    rng = torch.Generator().manual_seed(3)

    def answer(boxes, cls):
        noise = torch.randn(boxes.shape, generator=rng) * 1.2
        conf, wrong = torch.rand(len(cls), generator=rng), torch.rand(len(cls), generator=rng) < 0.2
        return boxes + noise, conf.sort(descending=True).values, torch.where(wrong, 1 - cls, cls)

    seen = told(monkeypatch, answer)
    result = coco.evaluate(detector(), scenes / "data.yaml", imgsz=160, device="cpu")
    assert 20 < result.ap50 < 95
    # 24 objects make a coarse curve, read off at 101 points by both but with different interpolation
    assert result.ap50 == pytest.approx(100 * seen[-1].metrics.box.map50, abs=3)
    assert result.ap == pytest.approx(100 * seen[-1].metrics.box.map, abs=3)


def test_no_detection_at_all(scenes, monkeypatch):
    told(monkeypatch, lambda boxes, cls: (boxes[:0], cls[:0], cls[:0]))
    result = coco.evaluate(detector(), scenes / "data.yaml", imgsz=64, device="cpu")
    assert (result.ap, result.ap50) == (0, 0)


def test_a_single_image_without_objects(scenes):
    for part in ("images", "labels"):
        for file in (scenes / part / "val").iterdir():
            if file.stem != "3":
                file.unlink()
    result = coco.evaluate(detector(), scenes / "data.yaml", imgsz=64, device="cpu")
    assert (result.images, result.objects) == (1, 0) and math.isnan(result.ap) and math.isnan(result.ap_small)


@pytest.mark.parametrize("kind", ["yolo26n.yaml", "yolov8n.yaml"])
def test_an_untrained_checkpoint_scores_nothing_and_counts_its_parameters(scenes, kind, monkeypatch):
    model = detector(kind=kind)
    torch.save({"model": model, "train_args": {}}, scenes / "last.pt")
    work = scenes / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    result = coco.evaluate(scenes / "last.pt", scenes / "data.yaml", imgsz=64, device="cpu", max_det=50)
    assert 0 <= result.ap <= result.ap50 < 10
    assert result.parameters == sum(p.numel() for p in model.fuse(verbose=False).parameters())
    assert os.listdir(work) == []  # no runs/ folder is left behind
    assert set(result.as_dict()) == {f.name for f in fields(result)}
    assert json.loads(json.dumps(result.as_dict()))["classes"][0]["name"] == "plane"


def test_max_det_limits_what_is_kept_and_dense_images_raise_the_default(scenes, monkeypatch):
    (scenes / "labels/val/0.txt").write_text("".join(f"0 {0.01 + i / 420} 0.5 0.01 0.2\n" for i in range(400)))
    seen = told(monkeypatch, lambda boxes, cls: (boxes, torch.full_like(cls, 0.8), cls))
    result = coco.evaluate(detector(), scenes / "data.yaml", imgsz=640, device="cpu")
    assert seen[-1].args.max_det == 400 and result.objects == 418 and result.classes[0].ap50 > 99


def test_predicted_boxes_stand_beside_their_objects_in_the_order_of_the_paths(scenes, monkeypatch):
    """Rectangular batches go through the images by their shape; what comes back does not."""
    told(monkeypatch, lambda boxes, cls: (boxes, torch.full_like(cls, 0.8), cls))
    seen = [coco.predict(detector(), scenes / "data.yaml", 96, 2, "cpu", rect=rect) for rect in (True, False)]
    for predicted in seen:
        truth, found = predicted.truth, predicted.found
        assert [os.path.basename(file) for file in truth.images] == [f"{i}.png" for i in range(5)]
        assert truth.shapes.tolist() == [[96, 160], [120, 64], [77, 131], [64, 64], [200, 210]]
        assert truth.names == NAMES and np.bincount(truth.image, minlength=5).tolist() == [6, 6, 6, 0, 6]
        for i in range(5):
            mine, theirs = truth.image == i, found.of(i)
            assert theirs.cls.tolist() == truth.cls[mine].tolist()
            np.testing.assert_allclose(theirs.box, truth.box[mine], atol=0.05)
        rows = np.loadtxt(scenes / "labels/val/1.txt")
        corner = (rows[:, 1:3] - rows[:, 3:] / 2) * (64, 120)
        np.testing.assert_allclose(truth.box[truth.image == 1][:, :2], corner, atol=1e-3)
    np.testing.assert_array_equal(seen[0].truth.box, seen[1].truth.box)


def test_predicted_tells_what_it_took(scenes):
    model = detector()
    predicted = coco.predict(model, scenes / "data.yaml", 64, 2, "cpu", "train", conf=0.0, max_det=7)
    assert predicted.parameters == sum(p.numel() for p in model.fuse(verbose=False).parameters())
    assert len(predicted.found) == 5 * 7 and predicted.max_det == 7
    assert (predicted.floor, predicted.overlap) == (None, None)  # nothing but what was asked for
    assert predicted.rect is True and predicted.doubt is None
    assert set(predicted.speed) == {"preprocess", "inference", "postprocess"} and predicted.speed["inference"] > 0
    assert all("train" in file for file in predicted.truth.images)


def test_images_that_cannot_be_read_are_named_and_left_out(scenes, log):
    (scenes / "images/val/0.png").write_bytes(b"no image")
    (scenes / "labels/val/1.txt").write_text("0 0.5 0.5 7 7\n")
    predicted = coco.predict(detector(), scenes / "data.yaml", imgsz=64, device="cpu")
    assert [os.path.basename(file) for file in predicted.truth.images] == ["2.png", "3.png", "4.png"]
    assert {name for name in ("0.png", "1.png", "2.png") if any(name in line for line in log)} == {"0.png", "1.png"}
    assert [os.path.basename(file) for file in predicted.damaged] == ["0.png", "1.png"]
    part = coco.predict(detector(), scenes / "data.yaml", imgsz=64, device="cpu", fraction=[1.0, 0.6])
    assert part.damaged == predicted.damaged and len(part.truth.images) == 1  # others were not asked for


def test_a_split_that_is_missing_or_empty_is_named(scenes):
    for split, path in (("test", None), ("val", "images/none"), ("val", "nothing")):
        (scenes / "nothing").mkdir(exist_ok=True)
        paths = {"train": "images/train", "val": "images/val", "names": NAMES, **({split: path} if path else {})}
        (scenes / "other.yaml").write_text(yaml.safe_dump(paths))
        with pytest.raises(Exception) as caught:
            coco.predict(detector(), scenes / "other.yaml", imgsz=64, device="cpu", split=split)
        line = errors.explain(caught.value)
        assert line is not None and (path or split).rpartition("/")[2] in line
    assert line.startswith("nothing to rate in the split 'val' of") and line.endswith("/nothing")
    assert "No images found in" in line


def test_an_interruption_passes_through(scenes, monkeypatch):
    def stop(boxes, cls):
        raise KeyboardInterrupt

    told(monkeypatch, stop)
    before = sorted(scenes.rglob("*"))
    with pytest.raises(KeyboardInterrupt):
        coco.predict(detector(), scenes / "data.yaml", imgsz=64, device="cpu")
    assert {p.name for p in set(scenes.rglob("*")) - set(before)} <= {"val.cache"}


def test_missing_files_are_named(scenes):
    with pytest.raises(UserError, match="model file .*none.pt"):
        coco.evaluate(scenes / "none.pt", scenes / "data.yaml")
    with pytest.raises(UserError, match="data file .*none.yaml"):
        coco.evaluate(detector(), scenes / "none.yaml")


def test_classes_that_do_not_fit_are_named(scenes):
    swapped = detector({0: "plane", 1: "car", 2: "ship"})
    with pytest.raises(UserError, match="'ship' is number 2 in the model and 1 in the data"):
        coco.evaluate(swapped, scenes / "data.yaml", imgsz=64, device="cpu")
    with pytest.raises(UserError, match="knows 2 classes and the data 3 .*'car'"):
        coco.evaluate(detector({0: "plane", 1: "ship"}), scenes / "data.yaml", imgsz=64, device="cpu")
    with pytest.raises(UserError, match="classes=3: the data have 3 classes"):
        coco.evaluate(detector(), scenes / "data.yaml", imgsz=64, device="cpu", classes=3, single_cls=True)


def test_channels_that_do_not_fit_are_named(scenes, monkeypatch):
    described = yaml.safe_load((scenes / "data.yaml").read_text())
    (scenes / "grey.yaml").write_text(yaml.safe_dump({**described, "channels": 1}))
    said = "takes images of 3 channels and the data have 1"
    with pytest.raises(UserError, match=said):
        coco.predict(detector(), scenes / "grey.yaml", imgsz=64, device="cpu")

    def on_a_gpu(*_, **__):
        torch.nn.functional.conv2d(torch.zeros(1, 1, 8, 8), torch.zeros(4, 3, 3, 3))

    monkeypatch.setattr(coco.CocoValidator, "__call__", on_a_gpu)
    with pytest.raises(UserError, match=said):
        coco.predict(detector(), scenes / "grey.yaml", imgsz=64, device="cpu")


def test_a_model_for_another_task_is_refused(scenes):
    model = ClassificationModel("yolo26n-cls.yaml", nc=3, verbose=False)
    model.names, model.args, model.task = NAMES, {}, "classify"
    with pytest.raises(UserError, match="'classify'"):
        coco.evaluate(model, scenes / "data.yaml", imgsz=64, device="cpu")
