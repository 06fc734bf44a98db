"""What is told to the user in one line, and what keeps its traceback."""

import errno
from pathlib import Path

import pytest

from ds2d2_yolo.errors import UserError, explain, one_line


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def raised_by(function, *arguments):
    """The exception, with the traceback of where it was raised."""
    with pytest.raises(Exception) as raised:  # noqa: B017, PT011
        function(*arguments)
    return raised.value


@pytest.mark.parametrize(
    "error, line",
    [
        (UserError("no such\n  wavelet 'db99'"), "no such wavelet 'db99'"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.yaml"), "'a.yaml': No such file or directory"),
        (PermissionError(errno.EACCES, "Permission denied", "runs"), "'runs': Permission denied"),
        (FileNotFoundError("'b.yaml' does not exist"), "'b.yaml' does not exist"),
        (FileNotFoundError("Image Not Found b.tif"), "Image Not Found b.tif"),
        (FileNotFoundError(f"Image Not Found {__file__}"), f"the image '{__file__}' cannot be decoded: cut short"),
        (
            FileNotFoundError(f"Caught it in worker 0.\nFileNotFoundError: Image Not Found {__file__}"),
            f"the image '{__file__}' cannot be decoded: cut short",
        ),
        (ConnectionError("❌  Download failure for x.pt."), "Download failure for x.pt."),
        (ModuleNotFoundError("No module named 'openvino'", name="openvino.runtime"), "'openvino', which is not"),
    ],
)
def test_what_the_user_caused_is_one_line(error, line):
    assert line in explain(error) and "\n" not in explain(error)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "runs/last.pt"),
        RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/0: file write failed"),
    ],
)
def test_a_full_disk_says_how_to_go_on(error):
    assert "the disk is full" in explain(error) and "resume=" in explain(error)


def test_out_of_gpu_memory():
    import torch

    assert "batch=" in explain(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))


@pytest.mark.parametrize(
    "bug",
    [
        ValueError("x"),
        TypeError("x"),
        KeyError("x"),
        RuntimeError("shapes differ"),
        SyntaxError("x"),
        AssertionError("x"),
        OSError(errno.EIO, "Input/output error"),
        ConnectionResetError(errno.ECONNRESET, "a data loader died"),
        BrokenPipeError(errno.EPIPE, "a data loader died"),
        FileNotFoundError(errno.ENOENT, "a socket of a data loader"),
        ModuleNotFoundError("No module named 'ds2d2_yolo.gone'", name="ds2d2_yolo.gone"),
    ],
    ids=lambda bug: type(bug).__name__,
)
def test_a_bug_is_not_explained(bug):
    assert explain(bug) is None


def test_a_bug_inside_ultralytics_is_not_explained():
    """It stumbles where it checks input, without refusing anything: by its type alone it could be a refusal."""
    from ultralytics.cfg import parse_key_value_pair

    error = raised_by(parse_key_value_pair, "no equals sign")
    assert isinstance(error, ValueError)
    assert explain(error) is None


def test_a_user_error_is_found_under_what_ultralytics_wraps_it_in():
    def function():
        try:
            raise UserError("classes differ: ship")
        except UserError as error:
            raise RuntimeError("Dataset 'x.yaml' error") from error

    assert explain(raised_by(function)) == "classes differ: ship"


def get_cfg(**overrides):
    from ultralytics.cfg import get_cfg

    return get_cfg(overrides=overrides)


def check_det_dataset(text):
    from ultralytics.data.utils import check_det_dataset

    Path("set.yaml").write_text(text)
    check_det_dataset("set.yaml")


def load_checkpoint(content):
    from ultralytics import YOLO

    Path("broken.pt").write_bytes(content)
    YOLO("broken.pt")


def build_model(text):
    from ultralytics import YOLO

    Path("net.yaml").write_text(text)
    YOLO("net.yaml", task="detect")


def select_device(device):
    from ultralytics.utils.torch_utils import select_device

    select_device(device)


@pytest.mark.parametrize(
    "function, argument, named",
    [
        (lambda _: get_cfg(epochs="x"), None, ["epochs=x"]),
        (lambda _: get_cfg(mosaic=7), None, ["mosaic=7", "between 0.0 and 1.0"]),
        (lambda _: get_cfg(epoch=3, imgs=3), None, ["'epoch'", "epochs=", "'imgs'", "imgsz="]),
        (check_det_dataset, "train: [a\nval: b: c\n", ["set.yaml", "line 1"]),
        (check_det_dataset, "- a\n- b\n", ["set.yaml"]),
        (check_det_dataset, "train: x\nval: y\n", ["set.yaml", "names"]),
        (check_det_dataset, "train: nope\nval: nope\nnames: [a, b]\n", ["set.yaml", "nope"]),
        (check_det_dataset, "train: a\nval: a\nnc: 3\nnames: [a, b]\n", ["set.yaml", "nc: 3"]),
        (load_checkpoint, b"garbage", ["broken.pt"]),
        (load_checkpoint, b"", ["broken.pt"]),
        (build_model, "nc: 2\nbackbone:\n  - [-1, 1, Nope, [64]]\nhead: []\n", ["'Nope'"]),
        (select_device, "99", ["device=99"]),
    ],
)
def test_what_ultralytics_refuses_is_one_line(in_tmp, function, argument, named):
    """Ultralytics' own functions, so that a release that words or places its checks otherwise is noticed."""
    line = explain(raised_by(function, argument))
    assert line and "\n" not in line
    assert all(part in line for part in named), line
    assert not any(noise in line for noise in ("\x1b", "❌", "Error:", "<unicode string>", "https://")), line


@pytest.fixture
def get_dataset(in_tmp):
    """What the trainer raises over a data set file of this text."""
    from ultralytics.cfg import get_cfg
    from ultralytics.models.yolo.detect import DetectionTrainer

    def raised_over(text):
        Path("set.yaml").write_text(text)
        trainer = DetectionTrainer.__new__(DetectionTrainer)
        trainer.args = get_cfg(overrides={"data": "set.yaml", "task": "detect"})
        with pytest.raises(RuntimeError, match="Dataset 'set.yaml' error") as raised:
            trainer.get_dataset()
        return raised.value

    return raised_over


def test_a_data_set_error_of_the_trainer_is_said_once(get_dataset):
    line = explain(get_dataset("train: nope\nval: nope\nnames: [a]\n"))
    assert line.count("set.yaml") == 1 and "nope" in line


def test_a_data_set_file_that_ultralytics_trips_over(get_dataset):
    assert "set.yaml" in explain(get_dataset("train: [3]\nval: [3]\nnames: [a]\n"))


def test_a_bug_that_the_trainer_takes_for_a_data_set_error(get_dataset, monkeypatch):
    monkeypatch.setattr("ultralytics.engine.trainer.check_det_dataset", lambda *_, **__: {}["bug"])
    assert explain(get_dataset("nc: 1\n")) is None


def test_yaml_errors():
    import yaml

    with pytest.raises(yaml.YAMLError) as raised:
        yaml.safe_load("a: b: c")
    assert "line 1" in explain(raised.value) and "\n" not in explain(raised.value)


@pytest.mark.parametrize(
    "text, line",
    [
        ("\x1b[31m\x1b[1mERROR\x1b[0m ❌️ x.pt is bad.\nRecommended fixes are many", "x.pt is bad."),
        ("\n  first \n second\n\nthird", "first second"),
        ("image 'a❌b.jpg' ⚠️ broken ❌.", "image 'a❌b.jpg' broken."),
        ("Dataset 'a.yaml' error ❌ names missing", "data set 'a.yaml': names missing"),
        ("Dataset 'a.yaml' error ❌ 'a.yaml' is empty", "'a.yaml' is empty"),
        ("ERRORS=3 is wrong", "ERRORS=3 is wrong"),
    ],
)
def test_one_line(text, line):
    assert one_line(text) == line


def test_one_line_is_not_endless():
    assert len(one_line("word " * 1000)) == 500
