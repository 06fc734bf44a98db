"""Trainings of seconds, and what they leave behind."""

import csv
import hashlib
import logging
import pickletools
import zipfile
from contextlib import contextmanager
from pathlib import Path

import torch
from ultralytics.utils import LOGGER
from ultralytics.utils.callbacks.base import default_callbacks

from ds2d2_yolo import cli

TERMS = ("ex_low", "ex_high", "im_full", "im_high")
SHARES = tuple(f"share/{name}" for name in ("detection", *TERMS))
# Maps of 12, 6 and 3 cells; a step of the optimizer for every batch.
RECIPE = {"imgsz": 96, "batch": 4, "nbs": 4, "optimizer": "AdamW", "lr0": 0.004, "device": "cpu", "workers": 0}
RECIPE |= {"plots": False, "seed": 0, "exist_ok": True}


def train(project, **settings):
    """Runs `ds2d2 train` with the short recipe and `settings` into `project`; returns its exit code."""
    return cli.train([f"{key}={value}" for key, value in {**RECIPE, "project": project, **settings}.items()])


def resume(last, **settings):
    """Runs `ds2d2 train resume=last`; returns its exit code."""
    return cli.train([f"resume={last}", *(f"{key}={value}" for key, value in settings.items())])


def rows(run):
    """The rows of a run's results.csv, as dicts of numbers."""
    with open(Path(run) / "results.csv", newline="") as file:
        return [{key.strip(): float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def packages(checkpoint):
    """The packages whose classes and functions the checkpoint's pickle asks for."""
    with zipfile.ZipFile(checkpoint) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        opcodes = list(pickletools.genops(archive.read(name)))
    return {argument.partition(".")[0].split(" ")[0] for code, argument, _ in opcodes if code.name == "GLOBAL"}


def one_error(capsys):
    """The single line that a refused command wrote to stderr."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("ds2d2: error: ")
    return lines[0]


@contextmanager
def listening():
    """Collects what Ultralytics and this package log, line by line."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.extend(record.getMessage().splitlines())
    LOGGER.addHandler(handler)
    try:
        yield lines
    finally:
        LOGGER.removeHandler(handler)


def hang_in(monkeypatch, event, function):
    """Hangs `function(trainer)` into an event of every trainer that is made from now on."""
    monkeypatch.setitem(default_callbacks, event, [*default_callbacks[event], function])


def weights(module):
    """A copy of a module's parameters and buffers."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def same(one, other):
    """Whether two dicts of tensors are equal, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def part(state, name):
    """The entries of a state dict that belong to one child."""
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
