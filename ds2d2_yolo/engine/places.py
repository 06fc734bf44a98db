"""Relative paths: a run's files, found again by who resumes it from another folder, and the folder that it goes to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from copy import copy
from pathlib import Path

from ultralytics.cfg import TASK2DATA, get_save_dir
from ultralytics.nn.tasks import load_checkpoint

from ds2d2_yolo.errors import UserError
from ds2d2_yolo.restricted import begun_with  # and checkpoints run nothing

NAMED = ("data", "teacher", "amplifier", "distill_model", "pretrained", "model", "backbone_weights")


def resolved(args: Mapping) -> dict:
    """Return those of a run's files, by setting, that relative paths name where it was begun (``begun_in``).

    They go before files of the same name here; what is not there, as where a run has moved, is looked for here.
    """
    found, begun_in = {}, args.get("begun_in")
    for key in NAMED:
        value = args.get(key)
        if begun_in and isinstance(value, (str, Path)) and str(value) and not os.path.isabs(value):
            there = os.path.join(begun_in, value)
            if os.path.isfile(there):
                found[key] = there
    return found


def not_given_anew(overrides: Mapping) -> dict:
    """Return arguments without a ``data`` that ``YOLO(last).train(resume=True)`` took from its checkpoint.

    Named here it would be a file of this folder, and not of the one that the run was begun in.

    Raises:
        UserError: It was asked to resume a finished run.
    """
    last, model = overrides.get("resume"), overrides.get("model")
    # What it makes of resume=True where there is nothing to resume: a new run, on data of its own
    if last is False and overrides.get("data") == TASK2DATA["detect"] and Path(str(model)).suffix == ".pt":
        raise UserError(f"{model} is a finished run; leave out resume=True and give data= to go on from its weights")
    if isinstance(last, (str, Path)) and last == model and Path(last).is_file():
        with suppress(Exception):  # whatever a broken file makes the unpickler raise: said when it is resumed
            if load_checkpoint(last)[0].args.get("data") == overrides.get("data"):
                return {key: value for key, value in overrides.items() if key != "data"}
    return dict(overrides)


def begun(args: Mapping) -> dict:
    """Return what a run that begins now remembers: the folder it begins in, and what resuming it will replace."""
    asked = begun_with(args) or {key: args.get(key) for key in ("model", "amplifier")}
    return {"begun_in": os.getcwd(), "begun_with": {k: str(v) if isinstance(v, Path) else v for k, v in asked.items()}}


def absolute(given: Mapping) -> dict:
    """Return files that are named from here, by setting, by whole paths: they are kept with a run begun elsewhere."""
    return {k: os.path.abspath(v) if isinstance(v, (str, Path)) and os.path.isfile(v) else v for k, v in given.items()}


def run_from_here(args, name: str | None = None) -> Path:
    """Ultralytics' ``get_save_dir``, which puts a relative ``project=`` elsewhere; loggers know it as it was given."""
    if args.project and not getattr(args, "save_dir", None):
        args = copy(args)
        args.project = os.path.abspath(str(args.project))
    return get_save_dir(args, name)
