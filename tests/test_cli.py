"""The command line: arguments in, settings handed on, errors out. What is called behind it stands in here."""

import sys
import types
from pathlib import Path

import pytest

from ds2d2_yolo import cli, paths
from ds2d2_yolo.errors import UserError
from tests.helpers.refusals import error_of

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def calls(monkeypatch):
    """What the command line handed on, as (function, arguments); nothing behind it runs."""
    made = []
    for module, function in (
        ("ds2d2_yolo.engine.train", "train"),
        ("ds2d2_yolo.demo", "run"),
        ("ds2d2_yolo.val", "run"),
        ("ds2d2_yolo.exporting", "run"),
    ):
        stand_in = types.ModuleType(module)
        name = f"{module.removeprefix('ds2d2_yolo.')}.{function}"
        setattr(stand_in, function, lambda *arguments, name=name: made.append((name, *arguments)))
        monkeypatch.setitem(sys.modules, module, stand_in)
    return made


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- what is called


def test_train_hands_the_settings_on(calls, in_tmp):
    assert cli.main(["train", "data=my.yaml", "epochs=3", "lr0=1e-3", "rect=True", "imgsz=[320,", "640]"]) == 0
    settings = {"data": "my.yaml", "epochs": 3, "lr0": 1e-3, "rect": True, "imgsz": [320, 640]}
    assert calls == [("engine.train.train", settings)]


def test_a_file_without_settings_is_not_the_demonstration(tmp_path, capsys):
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    assert cli.train([f"cfg={tmp_path / 'empty.yaml'}"]) == 2
    assert "no data set given; say data=my.yaml" in capsys.readouterr().err


def test_train_without_arguments_is_the_demonstration(calls):
    assert cli.train([]) == 0
    assert calls == [("demo.run",)]


@pytest.mark.parametrize("command, backend", [("val", "val.run"), ("export", "exporting.run")])
def test_val_and_export(calls, in_tmp, command, backend):
    (in_tmp / "best.pt").touch()
    assert cli.main([command, "model=best.pt", "imgsz=320"]) == 0
    assert calls == [(backend, {"model": "best.pt", "imgsz": 320})]


@pytest.mark.parametrize("command", ["val", "export"])
@pytest.mark.parametrize("arguments", [[], ["imgsz=320"]])
def test_val_and_export_need_a_model(calls, capsys, command, arguments):
    assert cli.main([command, *arguments]) == 2
    assert "model=" in error_of(capsys)
    assert calls == []


def test_arguments_default_to_those_of_the_process(calls, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "epochs=2"])
    assert cli.train() == 0
    assert calls == [("engine.train.train", {"epochs": 2})]


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["train", "--help"], ["export", "model=x", "-h"], []])
def test_help(calls, capsys, arguments):
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: ds2d2") and f"{paths.CFG}: ds2d2.yaml for train, val.yaml for val" in out
    assert calls == []


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == "ds2d2_yolo 0.1.0\n"


def test_unknown_command(capsys):
    assert cli.main(["trian", "data=my.yaml"]) == 2
    assert "'trian'" in error_of(capsys)


# ---- how arguments are read


@pytest.mark.parametrize(
    "arguments, settings",
    [
        (["resume"], {"resume": True}),
        (["half", "val"], {"half": True, "val": True}),
        (["--epochs=3,", "batch", "=", "4"], {"epochs": 3, "batch": 4}),
        (["name=007", "project=1e3"], {"name": "007", "project": "1e3"}),
        (["teacher=none", "cache=false"], {"teacher": None, "cache": False}),
        (["data=a=b.yaml"], {"data": "a=b.yaml"}),
        (["ex_low=0.5", "wavelet=db2"], {"ex_low": 0.5, "wavelet": "db2"}),
        (["epochs=1", "epochs=2"], {"epochs": 2}),
    ],
)
def test_parse(in_tmp, arguments, settings):
    assert cli.parse(arguments) == settings


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["my.yaml"], "'my.yaml' is not of the form key=value"),
        (["epoch"], "try epochs="),
        (["model"], "try model=..."),
        (["epochs="], "'epochs=' is not of the form key=value; try epochs=100"),
        (["=3"], "'=3'"),
        (["imgsz=[320"], "unmatched"),
        (["[", "=", "3"], "cannot read the arguments"),
    ],
)
def test_malformed_arguments(calls, capsys, arguments, named):
    assert cli.train(arguments) == 2
    assert named in error_of(capsys)
    assert calls == []


def test_a_report_may_call_its_teacher_by_name(in_tmp):
    assert cli.parse(["teacher=big.pt"], "val") == {"teacher": "big.pt"}
    for arguments, command in ((["teacher=big.pt"], "train"), (["teacher=big.pt", "explain=a.jpg"], "val")):
        with pytest.raises(UserError, match=r"teacher=big.pt: there is no such file"):
            cli.parse(arguments, command)


def test_cfg_file_is_read_and_the_command_line_goes_first(in_tmp):
    (in_tmp / "mine.yaml").write_text("epochs: 7\nbatch: 2\ncfg: other.yaml\n")
    assert cli.parse(["epochs=9", "cfg=mine.yaml", "imgsz=64"]) == {"epochs": 9, "batch": 2, "imgsz": 64}


def test_missing_cfg_file(in_tmp, capsys):
    assert cli.train(["cfg=nowhere.yaml"]) == 2
    assert "nowhere.yaml" in error_of(capsys)


@pytest.mark.parametrize("key", ["model", "teacher", "amplifier", "resume", "pretrained"])
def test_missing_checkpoint_is_refused_before_anything_starts(calls, in_tmp, capsys, key):
    assert cli.train([f"{key}=nowhere/best.pt"]) == 2
    assert f"{key}=nowhere/best.pt: there is no such file" in error_of(capsys)
    assert calls == []


def test_where_a_missing_run_was_is_said(calls, in_tmp, capsys, monkeypatch):
    monkeypatch.setattr("ds2d2_yolo.engine.runs.in_the_first_stage", lambda last: f"; look beside {last}")
    assert cli.train(["resume=a/last.pt"]) == 2
    assert error_of(capsys).endswith("resume=a/last.pt: there is no such file; look beside a/last.pt")
    assert cli.train(["model=a/last.pt"]) == 2
    assert error_of(capsys).endswith("model=a/last.pt: there is no such file")
    assert calls == []


def test_checkpoints_that_ultralytics_can_find_are_left_to_it(in_tmp):
    (in_tmp / "mine.pt").touch()
    settings = {"model": "yolo26n.pt", "teacher": "https://example.org/a.pt", "amplifier": "mine.pt"}
    assert cli.parse([f"{key}={value}" for key, value in settings.items()]) == settings


def test_bare_names_of_shipped_files_become_paths(in_tmp, monkeypatch):
    for folder in ("data", "model", "cfg"):
        (in_tmp / folder).mkdir()
    (in_tmp / "model" / "net.yaml").write_text("nc: 2\n")
    (in_tmp / "data" / "sea.yaml").write_text("nc: 2\n")
    (in_tmp / "cfg" / "fast.yaml").write_text("epochs: 2\ndata: sea.yaml\n")
    monkeypatch.setattr(paths, "_FOLDERS", {kind: (in_tmp / kind,) for kind in ("data", "model", "cfg")})
    sea, net = str(in_tmp / "data" / "sea.yaml"), str(in_tmp / "model" / "net.yaml")
    assert cli.parse(["data=sea.yaml", "model=net.yaml"]) == {"data": sea, "model": net}
    assert cli.parse(["cfg=fast.yaml"]) == {"epochs": 2, "data": sea}


def test_val_takes_several_models(tmp_path, calls, capsys):
    names = [tmp_path / "a.pt", tmp_path / "b.pt"]
    for name in names:
        name.touch()
    assert cli.val([f"model={names[0]},{names[1]}", "data=my.yaml"]) == 0
    assert cli.val([f"model={names[0]},{tmp_path / 'c.pt'}", "data=my.yaml"]) == 2
    assert "c.pt: there is no such file" in capsys.readouterr().err
