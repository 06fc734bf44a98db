"""`export.py`: settings, refusals, and that only a file which agrees with PyTorch takes its place."""

import os
import signal
import time
from copy import deepcopy
from types import SimpleNamespace

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from ultralytics.nn.tasks import ClassificationModel

from ds2d2_yolo import exporting
from ds2d2_yolo.engine.amplifier_file import write_amplifier
from ds2d2_yolo.errors import UserError
from ds2d2_yolo.report.files import take_place
from tests.helpers.checkpoints import narrow_detector, save_checkpoint


@pytest.fixture(scope="module")
def detector():
    return narrow_detector()


@pytest.fixture
def checkpoint(tmp_path, detector):
    return save_checkpoint(tmp_path / "best.pt", detector)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for i in range(3):
        cv2.imwrite(str(folder / f"{i}.png"), rng.integers(0, 256, (48, 64, 3), np.uint8))
    return folder


def files(checkpoint):
    return sorted(path.name for path in checkpoint.parent.iterdir())


def test_onnx_is_the_default_and_runs_without_torch(checkpoint, images, detector, capsys):
    path = exporting.run({"model": str(checkpoint), "images": str(images)})
    assert path == checkpoint.with_suffix(".onnx")
    assert files(checkpoint) == ["best.onnx", "best.pt"]
    assert "best.onnx: checked on 3 images: boxes differ by at most" in capsys.readouterr().out
    x = np.random.default_rng(0).random((1, 3, 64, 64), np.float32)
    found = onnxruntime.InferenceSession(path).run(None, {"images": x})[0]
    with torch.no_grad():
        expected = deepcopy(detector).half().float()(torch.from_numpy(x))[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("fmt", ["onnx", "torchscript"])
def test_a_file_that_disagrees_is_refused(checkpoint, images, monkeypatch, fmt):
    def convert_another(yolo, *args):
        made = convert(yolo, *args)
        with torch.no_grad():
            yolo.model.model[-1].cv3[0][-1].bias += 0.05
        return made

    convert = exporting._convert
    monkeypatch.setattr(exporting, "_convert", convert_another)
    old = checkpoint.with_suffix(f".{fmt}")
    old.write_bytes(b"the one from yesterday")
    with pytest.raises(UserError, match=r"disagrees with PyTorch.* px, scores by"):
        exporting.run({"model": checkpoint, "images": images, "format": fmt})
    assert files(checkpoint) == sorted(["best.pt", old.name])
    assert old.read_bytes() == b"the one from yesterday"
    exporting.run({"model": checkpoint, "format": fmt, "check": False})
    assert old.read_bytes() != b"the one from yesterday"


def test_an_onnx_file_that_does_not_load_is_refused(checkpoint, images, monkeypatch):
    def break_it(yolo, staging, stem, args):
        made = staging / f"{stem}.onnx"
        made.write_bytes(b"half of it")
        return made

    monkeypatch.setattr(exporting, "_convert", break_it)
    with pytest.raises(UserError, match="does not work"):
        exporting.run({"model": checkpoint, "images": images})
    assert files(checkpoint) == ["best.pt"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_stopped_export_leaves_everything_as_it_was(checkpoint, images, monkeypatch, stop):
    def stop_halfway(self, **_):
        checkpoint.parent.joinpath(next(checkpoint.parent.glob(".export-*")), "best.onnx").write_bytes(b"half")
        raise stop

    monkeypatch.setattr(exporting.YOLO, "export", stop_halfway)
    checkpoint.with_suffix(".onnx").write_bytes(b"the one from yesterday")
    with pytest.raises(KeyboardInterrupt if stop is KeyboardInterrupt else UserError):
        exporting.run({"model": checkpoint, "images": images})
    assert files(checkpoint) == ["best.onnx", "best.pt"]
    assert checkpoint.with_suffix(".onnx").read_bytes() == b"the one from yesterday"


def test_a_folder_is_replaced_whole(tmp_path):
    new, target, staging = tmp_path / "s" / "m", tmp_path / "m", tmp_path / "s"
    for folder, name in ((new, "new.xml"), (target, "old.xml")):
        folder.mkdir(parents=True)
        (folder / name).touch()
    take_place(new, target, staging)
    assert [path.name for path in target.iterdir()] == ["new.xml"]


def test_a_folder_that_has_the_files_name_stays(checkpoint, images):
    kept = checkpoint.with_suffix(".onnx") / "kept.txt"
    kept.parent.mkdir()
    kept.touch()
    with pytest.raises(UserError, match="best.onnx is a folder, and the new file has its name: move the folder away"):
        exporting.run({"model": checkpoint, "images": images, "check": False})
    assert kept.exists() and files(checkpoint) == ["best.onnx", "best.pt"]


def test_the_picture_is_of_the_settings_given(checkpoint, images, monkeypatch):
    seen = []
    monkeypatch.setattr(
        exporting.exported, "draw", lambda path, images, settings, to: seen.append(settings) or to.touch() or 0
    )
    given = {"conf": 0.1, "iou": 0.2, "max_det": 7, "agnostic_nms": True, "imgsz": 64}
    exporting.run(
        {
            "model": checkpoint,
            "images": images,
            "format": "torchscript",
            "save": True,
            "check": False,
            "device": 0 if torch.cuda.is_available() else "cpu",
            **given,
        }
    )
    assert {key: seen[0][key] for key in given} == {**given, "imgsz": (64, 64)}
    assert seen[0]["device"].type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_the_picture_shows_the_boxes(checkpoint, images, capsys):
    exporting.run({"model": checkpoint, "images": images, "format": "torchscript", "save": True, "conf": 0.1})
    out = capsys.readouterr().out
    picture = cv2.imread(str(checkpoint.with_name("best_check.jpg")))
    plain = cv2.imread(str(images / "0.png"))
    factor = round(1000 / max(plain.shape))
    plain = cv2.resize(plain, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)  # small objects to be seen
    assert len(picture) == len(plain) and picture.shape[1] > plain.shape[1]  # a legend beside it
    assert not out.startswith("0 boxes") and " 0 boxes drawn" not in out
    assert np.abs(picture[:, : plain.shape[1]].astype(int) - plain).max() > 100


def test_it_is_checked_on_the_data_set_of_the_checkpoint(tmp_path, detector, images, monkeypatch, capsys):
    data = tmp_path / "my.yaml"
    data.write_text(f"path: {images.parent}\ntrain: {images.name}\nval: {images.name}\nnames: [a, b, c]\n")
    checkpoint = save_checkpoint(tmp_path / "best.pt", detector, data=str(data))
    monkeypatch.setattr(exporting, "_scenes", lambda _: pytest.fail("the data set is there"))
    exporting.run({"model": checkpoint, "format": "torchscript"})
    assert "checked on 3 images" in capsys.readouterr().out


def test_a_data_set_that_was_asked_for_must_be_there(tmp_path, checkpoint, images, capsys):
    with pytest.raises(UserError, match="data file '/nowhere/typo.yaml' does not exist"):
        exporting.run({"model": checkpoint, "format": "torchscript", "data": "/nowhere/typo.yaml"})
    data = tmp_path / "my.yaml"
    data.write_text(f"path: {images.parent}\ntrain: {images.name}\nval: {images.name}\nnames: [a, b, c]\n")
    exporting.run(
        {"model": checkpoint, "format": "torchscript", "data": str(data)}
    )  # which the format knows nothing of
    assert "checked on 3 images" in capsys.readouterr().out


def test_a_schedulers_notice_leaves_nothing_behind(checkpoint, monkeypatch):
    before = sorted(checkpoint.parent.iterdir())

    def told(_, staging, *__):
        (staging / "half").write_bytes(b"a file")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    monkeypatch.setattr(exporting, "_convert", told)
    with pytest.raises(KeyboardInterrupt):
        exporting.run({"model": checkpoint, "format": "torchscript"})
    assert sorted(checkpoint.parent.iterdir()) == before


@pytest.mark.parametrize("channels", [1, 4])
def test_it_is_checked_on_drawn_scenes_where_the_data_set_is_gone(tmp_path, channels, capsys):
    model = narrow_detector(channels=channels)
    checkpoint = save_checkpoint(tmp_path / "best.pt", model, data="/nowhere/gone.yaml")
    exporting.run({"model": checkpoint, "format": "torchscript"})
    assert "checked on 4 images: boxes differ" in capsys.readouterr().out


def test_unreadable_images_are_named_and_skipped(checkpoint, images, tmp_path, capsys):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not an image")
    exporting.run({"model": checkpoint, "images": [images, broken], "format": "torchscript"})
    out = capsys.readouterr().out
    assert f"skipped {broken}" in out
    assert "checked on 3 images" in out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"formt": "onnx"}, "unknown setting 'formt'; did you mean format?"),
        ({"format": "onxx"}, "unknown format onxx: did you mean onnx?"),
        ({"format": "pt"}, "unknown format pt"),
        ({"dynamic": "perhaps"}, "dynamic"),
        ({"conf": 3.0}, "conf"),
        ({"imgsz": "large"}, "imgsz=large"),
        ({"batch": 0}, "batch=0"),
        ({"check": "perhaps"}, "check=perhaps"),
        ({"quantize": 7}, "quantize=7"),
        ({"int8": True}, "data=my.yaml"),
        ({"int8": True, "data": "/nowhere/gone.yaml"}, "gone.yaml"),
        ({"opset": 3}, "opset>=9"),
        ({"format": "torchscript", "opset": 17}, "opset"),
        ({"opset": 99}, "opset=99: this version of PyTorch writes operators up to opset="),
        ({"project": "runs", "name": "mine"}, "lies beside its checkpoint: leave project= and name= out"),
        ({"format": "rknn", "name": "rk3566", "project": "runs"}, "checkpoint: leave project= out"),  # the chip's
        ({"images": "/nowhere/*.png"}, "images=/nowhere/*.png: no readable image"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_one_clear_line(checkpoint, settings, message, capfd):
    with pytest.raises(UserError) as error:
        exporting.run({"model": checkpoint, **settings})
    assert "graph(" not in capfd.readouterr().out  # PyTorch's way to explain itself
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert files(checkpoint) == ["best.pt"]


def test_thresholds_that_the_file_will_not_have_are_named(checkpoint, capsys):
    def said(**settings):
        exporting.run({"model": checkpoint, "format": "torchscript", "check": False, **settings})
        return [line for line in capsys.readouterr().out.splitlines() if "the file has no NMS" in line]

    assert said() == said(conf=0.3, nms=True) == []
    (line,) = said(conf=0.3, iou=0.5)
    assert line == "conf=0.3 iou=0.5 goes for the picture: the file has no NMS (nms=True puts it there)"


def test_the_checkpoint_must_be_a_detector_in_one_piece(tmp_path):
    def refused(path, message):
        with pytest.raises(UserError, match=message):
            exporting.run({"model": path})

    refused("", "which checkpoint")
    refused(tmp_path / "gone.pt", "gone.pt: no such file")
    whole = save_checkpoint(tmp_path / "whole.pt", narrow_detector()).read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "half.pt", "half.pt: cannot be read")
    (tmp_path / "model.yaml").touch()
    refused(tmp_path / "model.yaml", "only a trained checkpoint")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "tensors.pt")
    refused(tmp_path / "tensors.pt", "tensors.pt' cannot be loaded: it holds no model")
    settings = SimpleNamespace(wavelet="haar", wavelet_padding="zero", high_frequency="bands")
    amplifier = write_amplifier(narrow_detector().model[-1], "0", settings, None, "teacher-amplifier.pt", [tmp_path])
    refused(amplifier, "teacher-amplifier.pt' is a high-frequency amplifier and no detector; name the teacher")
    classifier = ClassificationModel("yolo11n-cls.yaml", nc=3, verbose=False)
    save_checkpoint(tmp_path / "classifier.pt", classifier, task="classify")
    refused(tmp_path / "classifier.pt", "a model for task classify")
