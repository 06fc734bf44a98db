"""What a command line is told that names no command, no setting, or something else in a setting's place."""

from __future__ import annotations

import shlex
from difflib import get_close_matches

from ds2d2_yolo.errors import UserError
from ds2d2_yolo.importing import load
from ds2d2_yolo.paths import CFG

COMMANDS = ("train", "val", "export", "datasets")
OF_EXPORT = {"images": None, "check": True, "save": False, "trust": False}  # what export adds, with its defaults
_PREDICT = (
    "there is no predict here: what is trained or exported is predicted with by Ultralytics, "
    "yolo predict model=best.pt source=folder (RetinaNet and Faster R-CNN where this package is installed: "
    "pip install .); large scenes, tile by tile: ds2d2 datasets merge DATA.yaml model=best.pt"
)


def unknown_command(argv: list[str]) -> str:
    """Return what to say of a command that is not there, with the one that was meant."""
    command = argv[0]
    if command in load("ds2d2_yolo.converting").KINDS:
        return f"'{command}' is one of datasets' own: {shlex.join(['ds2d2', 'datasets', *argv])}"
    if command in {"predict", "detect", "track"}:
        return _PREDICT
    near = get_close_matches(command, COMMANDS, n=1)
    meant = f"did you mean {near[0]}?" if near else f"it is one of {', '.join(COMMANDS)}"
    return f"unknown command '{command}'; {meant} (ds2d2 --help)"


def check_known(command: str, settings: dict) -> None:
    """Check that all settings are known to val or export; train has more to say of its own.

    Raises:
        UserError: One is not; the nearest names are suggested. Or an export is told where to go.
    """
    defaults, older = load("ultralytics.cfg").DEFAULT_CFG_DICT, load("ds2d2_yolo.plausible").OLDER
    own = OF_EXPORT if command == "export" else load("ultralytics.utils").YAML.load(CFG / "val.yaml")
    known = dict.fromkeys([*defaults, *own])
    for key in settings:
        if key not in known and key not in older:
            near = get_close_matches(str(key), known)  # a file's keys may be numbers
            raise UserError(f"unknown setting '{key}'; " + _hint(near))
    places = [f"{key}=" for key in ("project", "name", "save_dir") if settings.get(key)]
    if command == "export" and load("ds2d2_yolo.formats").names_a_chip(settings.get("format")):
        places = [place for place in places if place != "name="]
    if command == "export" and places:
        raise UserError(f"an exported file lies beside its checkpoint: leave {' and '.join(places)} out")


def _hint(near: list[str]) -> str:
    return f"did you mean {' or '.join(near)}?" if near else "ds2d2 --help says where all are described"


def malformed(argument: str) -> str:
    """Return what to say of an argument that is no ``key=value``."""
    known, key = load("ultralytics.cfg").DEFAULT_CFG_DICT, argument.partition("=")[0].strip()
    near = get_close_matches(key, known, n=1)
    if not near:
        return f"'{argument}' is not of the form key=value"
    default = known[near[0]]
    return f"'{argument}' is not of the form key=value; try {near[0]}={'...' if default is None else default}"
