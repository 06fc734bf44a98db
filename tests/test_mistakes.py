"""What a newcomer gets wrong: one line that names the cause, one file and the way out."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from ultralytics.data.dataset import YOLODataset

from ds2d2_yolo import cli, exporting, val
from ds2d2_yolo.errors import UserError, explain
from ds2d2_yolo.given import models_of
from ds2d2_yolo.mislabelled import telling, where_expected
from ds2d2_yolo.report.coco import Predicted
from ds2d2_yolo.report.detections import Detections, Truth
from ds2d2_yolo.report.recovery import roles
from tests.helpers.checkpoints import narrow_detector, save_checkpoint
from tests.helpers.refusals import error_of
from tests.helpers.training import listening

GOOD, PIXELS, THIRD = "0 0.5 0.5 0.2 0.2\n", "0 16 44 10 10\n", "2 0.5 0.5 0.2 0.2\n"

# ---- commands and settings


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["dota", "my dota", "tiles=True"], "ds2d2 datasets dota 'my dota' tiles=True"),
        (["merge", "a.yaml"], "ds2d2 datasets merge a.yaml"),
        (["tococo"], "ds2d2 datasets tococo"),
        (["predict", "model=best.pt"], "yolo predict model=best.pt source=folder"),
        (["predict"], "ds2d2 datasets merge DATA.yaml model=best.pt"),
        (["trian"], "unknown command 'trian'; did you mean train? (ds2d2 --help)"),
        (["xyz"], "unknown command 'xyz'; it is one of train, val, export, datasets (ds2d2 --help)"),
    ],
)
def test_unknown_commands(argv, said, capsys):
    assert cli.main(argv) == 2
    assert said in error_of(capsys)


def test_datasets_is_a_command(monkeypatch, capsys):
    given = []
    monkeypatch.setattr("ds2d2_yolo.converting.main", given.append)
    assert cli.main(["datasets", "dota", "x", "tiles=False"]) == 0
    assert given == [["dota", "x", "tiles=False"]]
    monkeypatch.undo()
    assert cli.main(["datasets", "cooc"]) == 2
    assert "unknown format 'cooc'; it is one of coco" in error_of(capsys)
    assert cli.main(["datasets", "--help"]) == 0
    assert "ds2d2 datasets FORMAT" in capsys.readouterr().out
    assert cli.main([]) == 0
    assert "ds2d2 datasets dior" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["val", "models=a.pt,b.pt", "data=x.yaml"], "unknown setting 'models'; did you mean model or mode?"),
        (["train", "dat=x.yaml"], "unknown setting 'dat'; did you mean data"),
        (["export", "qqqqqq=a.pt"], "unknown setting 'qqqqqq'; ds2d2 --help says where all are described"),
        (["val", "draws=100", "half=True", "boxes=True"], "val needs a model"),
        (["export", "images=a", "int8=True"], "export needs a model"),
        (["train", "teacher=a", "save_dir=x", "label_smoothing=0.1"], "no data set given; say data=my.yaml"),
    ],
)
def test_unknown_settings_are_named_first(argv, said, capsys):
    assert cli.main(argv) == 2
    assert said in error_of(capsys)


# ---- folders in place of checkpoints


def test_a_folder_in_place_of_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs/teacher/weights").mkdir(parents=True)
    Path("runs/teacher/weights/best.pt").touch()
    Path("empty").mkdir()
    for look in (models_of, lambda model: exporting.run({"model": model})):
        for folder, meant in (("runs/teacher", "weights/best.pt"), ("runs/teacher/weights", "best.pt")):
            with pytest.raises(UserError, match=f"^'{folder}' is a folder; did you mean '{folder}/{meant}'\\?$"):
                look(folder)
        with pytest.raises(UserError, match=r"^'empty' is a folder; give a checkpoint, a \.pt file$"):
            look("empty")
    Path("best_openvino_model").mkdir()
    assert models_of("best_openvino_model") == ["best_openvino_model"]
    Path("a.txt").touch()
    with pytest.raises(UserError, match=r"'a.txt' is no model: neither a checkpoint"):
        models_of("a.txt")


# ---- devices


@pytest.mark.parametrize(
    ("device", "count", "visible", "said"),
    [
        (
            "0",
            0,
            None,
            "device=0: no GPU is seen here (torch.cuda.is_available() is False); "
            "use device=cpu, or check the driver and the PyTorch build",
        ),
        ("0,1", 0, "", "is_available() is False) (CUDA_VISIBLE_DEVICES=); use device=cpu"),
        ("1", 1, None, "device=1: only one GPU is seen here, device=0"),
        ("0,3", 2, "4,5", "device=0,3: only 2 GPUs are seen here, 0 to 1 (CUDA_VISIBLE_DEVICES=4,5)"),
        ("gpu", 2, None, "device=gpu is no device; say device=cpu, device=0 for a GPU, or device=0,1 for several"),
    ],
)
def test_devices_that_are_not_there(device, count, visible, said, monkeypatch):
    from ultralytics.utils.torch_utils import select_device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(ValueError, match="Invalid CUDA") as raised:
        select_device(device)
    line = explain(raised.value)
    assert said in line and "http" not in line


def test_an_export_names_a_device_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    checkpoint = save_checkpoint(tmp_path / "best.pt", narrow_detector())
    with pytest.raises(UserError, match=r"^device=0: no GPU is seen here"):
        exporting.run({"model": checkpoint, "device": 0, "check": False})


# ---- labels


def write(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def images(root, count=4):
    """Paths of new images in ``root/images/train``."""
    files = [root / "images" / "train" / f"{i}.png" for i in range(count)]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), np.zeros((32, 32, 3), np.uint8))
    return files


def dataset(root, texts, augment=True):
    """Ultralytics' own, of images with these labels; None: of one without a file."""
    for image, text in zip(images(root, len(texts)), texts, strict=True):
        if text is not None:
            write(root / "labels" / "train" / f"{image.stem}.txt", text)
    data = {"names": {0: "a", 1: "b"}}
    return YOLODataset(img_path=str(root / "images" / "train"), data=data, imgsz=32, augment=augment, hyp=None)


def refusal(root, texts, augment=True):
    """What is said of a data set that Ultralytics refuses."""
    with pytest.raises((RuntimeError, ValueError)) as raised:
        dataset(root, texts, augment)
    return explain(raised.value)


@pytest.fixture(autouse=True)
def no_transforms(monkeypatch):
    monkeypatch.setattr(YOLODataset, "build_transforms", lambda *_, **__: None)  # these want all of the settings


def test_labels_that_are_nowhere(tmp_path):
    line = refusal(tmp_path, [None] * 3)
    first = tmp_path / "images/train/0.png"
    assert line.startswith(f"no label file is there: expected {tmp_path}/labels/train/0.txt for {first}, and likewise")
    assert "the other 2;" in line and "fractions" in line and "docs/datasets.md" in line and "http" not in line


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("annotations/train/0.txt", "move such files to {}/labels/train"),
        ("annotations/0.txt", "move such files to {}/labels/train"),
        ("images/train/0.txt", "move such files to {}/labels/train"),
        ("Annotations/0.xml", "convert them with python -m ds2d2_yolo.datasets voc|dior"),
        ("annotations/instances.json", "convert them with python -m ds2d2_yolo.datasets coco"),
    ],
)
def test_labels_that_lie_elsewhere(tmp_path, file, said):
    write(tmp_path / file, GOOD)
    line = refusal(tmp_path, [None] * 2)
    assert f"there is {tmp_path / file}: " in line and said.format(tmp_path) in line


def test_images_outside_of_a_folder_of_that_name(tmp_path):
    assert "images belong into a folder images" in where_expected([tmp_path / "pictures" / "a.jpg"])
    assert where_expected([]) == ""


def test_folders_that_cannot_be_looked_into_are_passed_over(tmp_path, monkeypatch):
    images(tmp_path, 1)
    (tmp_path / "lost+found").mkdir()
    find = os.scandir

    def scandir(path):
        raise PermissionError(13, "Permission denied", str(path))

    for forbidden in (False, True):
        monkeypatch.setattr(os, "scandir", scandir if forbidden else find)
        assert "no label file is there: expected" in where_expected([tmp_path / "images/train/0.png"])


@pytest.mark.parametrize("augment", [True, False])
@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (
            [PIXELS] * 3 + [THIRD],
            "3 of 4 label files hold coordinates beyond 0 to 1, such as {}/0.txt: a YOLO label is",
        ),
        ([PIXELS], "its label file holds coordinates beyond 0 to 1, such as {}/0.txt"),
        (
            [THIRD] * 2,
            "label class 2 in {}/0.txt, but the data set's names end at 1: classes count from 0 (2 such files)",
        ),
        (["0 -0.5 0.5 0.1 0.1\n"] * 2, "2 of 2 label files hold numbers below 0, such as {}/0.txt"),
        (["0.5 0.5 0.5 0.1 0.1\n"] * 2, "hold classes that are no whole numbers, such as {}/0.txt"),
        (["0 0.5 0.5 0.1 0.1 0.9\n"] * 2, "hold rows of another length, such as {}/0.txt"),
        (["0 0.5 0.5 0.1 0.1 0.9\n0 0.5\n"] * 2, "hold rows of different lengths, such as {}/0.txt"),
        (["1 2 3 4 5 6 7 8 ship 0\n"] * 2, "hold words, such as {}/0.txt"),
    ],
)
def test_labels_of_which_none_will_do(tmp_path, texts, said, augment):
    for _ in range(2):  # from Ultralytics' cache, too, if it keeps one
        line = refusal(tmp_path, texts, augment)
        assert f"none of the {len(texts)} images of {tmp_path}/images/train can be used: " in line
        assert said.format(tmp_path / "labels/train") in line
        assert "\n" not in line and "16." not in line


def test_images_of_which_none_will_do(tmp_path):
    for i in range(3):
        write(tmp_path / f"images/train/{i}.png", "no image")
    with pytest.raises(RuntimeError) as raised:
        YOLODataset(img_path=str(tmp_path / "images"), data={"names": {0: "a"}}, imgsz=32)
    line = explain(raised.value)
    assert "none of the 3 images" in line and line.endswith("/0.png: cannot be read as an image, and 2 others like it")


def warnings_of(log):
    return [line for line in log if "are left out" in line]


def test_a_warning_where_most_labels_are_bad(tmp_path):
    with listening() as log, telling():
        for _ in range(2):  # scanned, then from the cache
            assert len(dataset(tmp_path, [GOOD, THIRD, THIRD, THIRD, None]).labels) == 2
    expected = (
        f"3 of the 5 images of {tmp_path}/images/train are left out: label class 2 in {tmp_path}/labels/train/1.txt"
    )
    assert len(warnings_of(log)) == 1 and expected in warnings_of(log)[0]
    with listening() as log:
        dataset(tmp_path, [GOOD, THIRD, THIRD, THIRD, None])
    assert not warnings_of(log)  # no longer than is asked for


def test_no_warning_where_a_few_labels_are_bad(tmp_path):
    with listening() as log, telling():
        dataset(tmp_path, [GOOD, None, THIRD, THIRD])
    assert not warnings_of(log)


def test_rating_warns(tmp_path, monkeypatch):
    monkeypatch.setattr(val, "_run", lambda _: dataset(tmp_path, [GOOD, PIXELS, PIXELS]))
    with listening() as log:
        val.run({})
    assert len(warnings_of(log)) == 1


def test_a_split_without_objects_is_told_before_the_timing(tmp_path, monkeypatch):
    files = images(tmp_path, 2)
    none = np.zeros(0, int)
    truth = Truth(tuple(map(str, files)), np.full((2, 2), 32), none, none, np.zeros((0, 4)), {0: "a"})
    seen = Predicted(truth, Detections([], [], [], []), 1, {}, 300, (32, 32))
    monkeypatch.setattr(val, "_predicted", lambda *_: seen)
    asked = {"data": "my.yaml", "imgsz": 32, "batch": 1}
    with listening() as log:
        results = val._results(None, {"m": "m.pt"}, roles(["m"]), {"latency": False, "draws": 100}, asked)
        (note,) = results.notes
        assert note.startswith(f"No label file is there: expected {tmp_path}/labels/train/0.txt for {files[0]}")
        assert results.remarks[1] == note and results.remarks[0] in str(results)
        write(tmp_path / "labels/train/1.txt")
        assert val._unlabelled(truth) == ()
    told = [line for line in log if "The split holds no labelled object, so there is no accuracy" in line]
    assert len(told) == 2 and told[0].endswith(note)
