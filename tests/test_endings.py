"""How commands end: exit codes, lines on stderr, and the scripts as processes."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ultralytics import utils

from ds2d2_yolo import cli, paths
from ds2d2_yolo.engine import processes
from ds2d2_yolo.errors import PeerEnded, UserError
from tests.helpers.refusals import error_of

ROOT = Path(__file__).resolve().parents[1]


def raising(error):
    def function():
        raise error

    return function


def test_what_the_user_caused_is_one_line_and_2(capsys):
    assert cli.run(raising(UserError("no such\n  wavelet 'db99'"))) == 2
    assert error_of(capsys) == "ds2d2: error: no such wavelet 'db99'"


def test_a_bug_keeps_its_traceback(capsys):
    bug = ValueError("x")
    with pytest.raises(ValueError) as raised:
        cli.run(raising(bug))
    assert raised.value is bug
    assert capsys.readouterr().err == ""


def test_a_broken_pipe_that_is_not_ours_is_a_bug():
    with pytest.raises(BrokenPipeError):
        cli.run(raising(BrokenPipeError(errno.EPIPE, "a data loader died")))


def test_traceback_on_request(monkeypatch):
    monkeypatch.setenv("DS2D2_TRACEBACK", "1")
    with pytest.raises(UserError):
        cli.run(raising(UserError("x")))


def test_interruption(capsys):
    assert cli.run(raising(KeyboardInterrupt())) == 130
    assert error_of(capsys) == "ds2d2: interrupted"
    interrupt = KeyboardInterrupt("interrupted in epoch 3")
    interrupt.add_note("go on with resume=runs/a/last.pt")
    assert cli.run(raising(interrupt)) == 130
    assert error_of(capsys) == "ds2d2: interrupted in epoch 3; go on with resume=runs/a/last.pt"


@pytest.mark.parametrize(
    "rank, met, alive, error, heard",
    [
        ("", 1, False, UserError("x"), True),
        ("0", 2, True, UserError("x"), True),
        ("1", 1, True, UserError("x"), False),  # the first makes the same mistake
        ("1", 2, False, UserError("x"), True),  # its own: the others have none
        ("1", 2, False, PeerEnded("x"), False),  # the first says it
        ("1", 2, True, PeerEnded("x"), True),  # which has ended
        ("1", 2, False, KeyboardInterrupt("x"), False),
        ("1", 2, True, KeyboardInterrupt("x"), True),
    ],
)
def test_one_of_many_processes_says_it(rank, met, alive, error, heard, monkeypatch, capsys):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(processes, "processes", lambda: met)
    monkeypatch.setattr(processes, "first_alive", lambda: alive)
    assert cli.run(raising(error)) == (130 if isinstance(error, KeyboardInterrupt) else 2)
    assert len(capsys.readouterr().err.splitlines()) == heard


@pytest.mark.parametrize("kind", ["dior", "dota"])
def test_images_that_are_yet_to_be_made_name_the_command(kind, capsys, tmp_path, monkeypatch):
    missing = f"Dataset '{paths.DATA / kind}.yaml' images not found"
    assert cli.run(raising(UserError(missing))) == 2
    assert error_of(capsys).endswith(
        f"; make them with: python -m ds2d2_yolo.datasets {kind} path/to/the/downloaded/folder"
    )
    made = tmp_path / "sets" / kind.upper() / "data.yaml"
    made.parent.mkdir(parents=True)
    made.touch()
    monkeypatch.setattr(utils, "DATASETS_DIR", tmp_path / "sets")
    monkeypatch.chdir(tmp_path)
    assert cli.run(raising(UserError(missing))) == 2
    assert "make them with" in error_of(capsys)  # a split that was not converted, say
    (tmp_path / kind.upper()).mkdir()  # which hides it
    assert cli.run(raising(UserError(missing))) == 2
    assert error_of(capsys).endswith(
        f"the folder '{kind.upper()}' here goes before the converted one: give data={made}"
    )


# ---- as a process


def process(code, **kwargs):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=environment, **kwargs)


def test_a_closed_pipe_ends_it_in_silence():
    code = (
        "import sys; from ds2d2_yolo import cli\n"
        "def endless():\n    while True: print('x' * 1000)\n"
        "sys.exit(cli.run(endless))"
    )
    running = process(code, stdout=subprocess.PIPE)
    assert running.stdout.readline()
    running.stdout.close()
    assert running.wait() == 141
    assert running.stderr.read() == ""


def test_output_that_is_still_buffered_when_the_pipe_closes():
    code = (
        "import sys; from ds2d2_yolo import cli\n"
        "sys.stdin.read()\n"  # until the reader of stdout is gone
        "sys.exit(cli.run(print, 'x'))"
    )
    running = process(code, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    running.stdout.close()
    running.stdin.close()
    assert running.wait() == 141
    assert running.stderr.read() == ""


@pytest.mark.parametrize("script", ["train.py", "val.py", "export.py"])
def test_scripts(script, tmp_path):
    """The scripts run from any directory, without an installed package, and hand the exit code on."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(*arguments):
        return subprocess.run(
            [sys.executable, ROOT / script, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    shown = run("--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith("usage: ds2d2")
    refused = run("nonsense") if script == "train.py" else run()
    assert refused.returncode == 2
    said = "'nonsense' is not of the form key=value" if script == "train.py" else "needs a model: ds2d2"
    assert refused.stderr.startswith("ds2d2: error: ") and said in refused.stderr
