"""The command that turns data sets, as they were downloaded, into what Ultralytics trains on, and back."""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path

from ds2d2_yolo.errors import UserError

USAGE = """\
usage: python -m ds2d2_yolo.datasets FORMAT SOURCE [DEST] key=value ...     (or ds2d2 datasets FORMAT ...)

  dior SOURCE [DEST]      DIOR: Annotations, ImageSets and JPEGImages-*, zip files or unpacked
  dota SOURCE [DEST]      DOTA, cut into tiles: train, val and test with images and labelTxt
  visdrone SOURCE [DEST]  VisDrone2019-DET-train, -val and -test-dev, zip files or unpacked
  voc SOURCE [DEST]       a folder with Pascal VOC's XML files
  coco SOURCE [DEST]      a folder with COCO's JSON files
  merge DATA.yaml model=best.pt [DEST]     detections in tiles -> whole images: AP, DOTA's submission files
  tococo DATA.yaml [FILE.json]             a YOLO data set as COCO JSON

boxes=horizontal|rotated   difficult=keep|drop   workers=0 (all processors)
dota: version=1.0|1.5|2.0   dota, visdrone: split=train (of images that lie in no folder of that name)
voc, coco: names=a,b,c (the classes and their order; default: all there are)   voc: origin=0 (1: pixels count from 1)
tiles=True|False (default: dota only)   size=1024   overlap=200   scales=1.0   keep=0.7 (share of an object that a
  tile must hold)   empty=1.0 (share of training tiles without objects that is kept)   format=png|jpg
merge: model=best.pt or predictions=predictions.json   split=val   rotated=True|False (default: as the model has it)
  pieces=drop|keep   keep_difficult=True (for COCO's AP)   iou_horizontal=0.5 iou_rotated=0.1 (NMS of the whole image)
  within a tile: imgsz batch=16 device conf=0.001 (rotated: 0.01) iou=0.7 max_det=1000
  trust=False (True: the model may run what it brings along; only if you know where it comes from)
tococo: split=val

DEST defaults to Ultralytics' datasets folder, where data=dior.yaml, dota.yaml and VisDrone.yaml look. The source is
only read. An interrupted conversion goes on with the same command.
"""
COMMON = {"boxes": "horizontal", "difficult": "keep", "workers": 0}
TILING = {"size": 1024, "overlap": 200, "scales": (1.0,), "keep": 0.7, "empty": 1.0, "format": "png"}
OPTIONS = {
    "dior": {"tiles": False},
    "dota": {"tiles": True, "version": "1.0", "split": "train"},
    "visdrone": {"tiles": False, "split": "train"},
    "voc": {"tiles": False, "names": None, "origin": 0},
    "coco": {"tiles": False, "names": None},
}
MERGING = {  # the defaults; a type where there is none
    **{"model": str, "predictions": str, "split": "val", "rotated": bool, "pieces": "drop", "keep_difficult": True},
    **{"iou_horizontal": 0.5, "iou_rotated": 0.1, "imgsz": int, "batch": 16, "device": str, "conf": float},
    **{"iou": 0.7, "max_det": 1000, "trust": False},
}
KINDS = (*OPTIONS, "merge", "tococo")
_TYPES = {bool: "True or False", int: "a whole number", float: "a number", str: "a name"}
CHOICES = {"boxes": ("horizontal", "rotated"), "difficult": ("keep", "drop"), "format": ("png", "jpg")}


def main(argv: list[str]) -> None:
    """Run the command.

    Raises:
        UserError: Anything in the arguments or files that the user can mend.
    """
    if not argv or {"-h", "--help", "help"} & set(argv):
        print(USAGE)
        return
    command, *rest = argv
    commands = {**dict.fromkeys(OPTIONS, _convert), "merge": _merge, "tococo": _to_coco}
    if command not in commands:
        near = get_close_matches(command, commands, n=1)
        raise UserError(f"unknown format '{command}'; it is one of {', '.join(near or commands)}")
    paths, settings = _arguments(rest)
    commands[command](command, paths, settings)


def _arguments(argv: list[str]) -> tuple[list[str], dict]:
    """Paths and settings, read as Ultralytics reads them."""
    from ds2d2_yolo.cli import parse_pair

    paths, settings = [], {}
    for argument in argv:
        if not re.match(r"(--)?[A-Za-z_]\w*=", argument):
            if argument.startswith("--"):
                raise UserError(f"'{argument}' is not of the form key=value, as in {argument.lstrip('-')}=VALUE")
            paths.append(os.path.expanduser(argument))
            continue
        try:
            key, settings[key] = parse_pair(argument.removeprefix("--"))
        except (AssertionError, ValueError) as error:
            raise UserError(f"'{argument}' is not of the form key=value") from error
    return paths, settings


def _convert(kind: str, paths: list[str], settings: dict) -> None:
    from ds2d2_yolo.datasets.convert import convert
    from ds2d2_yolo.datasets.one_image import Options
    from ds2d2_yolo.datasets.source import Source
    from ds2d2_yolo.datasets.tiles import Tiling

    if not 1 <= len(paths) <= 2:
        what = f"takes SOURCE and DEST, not '{paths[2]}' besides" if paths else "needs a source"
        raise UserError(f"{kind} {what}: python -m ds2d2_yolo.datasets {kind} SOURCE [DEST] key=value ...")
    own = _checked(kind, settings)
    tiling = Tiling(**{key: own[key] for key in TILING}) if own["tiles"] else None
    if not tiling and (useless := sorted(TILING.keys() & settings.keys())):
        raise UserError(f"{useless[0]}= is for tiles; add tiles=True")
    listing = f"listing {paths[0]} ...".encode(errors="backslashreplace").decode()  # a name may be no text
    print(listing, flush=True)  # tens of thousands of files take a while
    source = Source(paths[0])
    plan = _plan(kind, source, own)
    taken = {job.image for job in plan.jobs}  # JSON names images in any format
    if others := [file for file in source.passed_over if file not in taken]:
        reason = "left out for an image of its name in a more usual format, in another folder (rename one)"
        plan.problems[reason] = [str(file.path) for file in others]
    dest = Path(paths[1]) if len(paths) > 1 else _default_dest(kind, source.root, own)
    options = Options(own["boxes"] == "rotated", own["difficult"] == "keep", tiling)
    census = convert(plan, dest, options, source.root, own["workers"])
    print(f"\n{census}\n\n{dest / 'census.png'}: a picture of it\n{_next(dest / 'data.yaml', options.rotated)}")


def _next(data_yaml: Path, rotated: bool) -> str:
    from ultralytics.utils import YAML

    if lacking := [key for key in ("train", "val") if key not in YAML.load(data_yaml)]:
        return f"not to be trained on as it is: add {' and '.join(lacking)} to {data_yaml}, folders or lists of images"
    if rotated:
        return f"for Ultralytics' own training on rotated boxes: yolo obb train model=yolo26n-obb.pt data={data_yaml}"
    return f"train on it with data={data_yaml}"


def _plan(kind: str, source, own: dict):
    module = import_module(f"ds2d2_yolo.datasets.{'coco_json' if kind == 'coco' else kind}")
    wanted = ("boxes", *OPTIONS[kind]) if kind != "dota" else OPTIONS[kind]  # DOTA's labels hold both
    return module.plan(source, **{key: own[key] for key in wanted if key != "tiles"})


def _checked(kind: str, settings: dict) -> dict:
    """Every option with its default, of the type that the default has."""
    known = {**COMMON, **TILING, **OPTIONS[kind]}
    for key in settings:
        if key not in known:
            near = " or ".join(get_close_matches(key, known))
            hint = f"did you mean {near}?" if near else f"there are {', '.join(sorted(known))}"
            raise UserError(f"unknown setting '{key}' of {kind}; {hint}")
    own = {**known, **{key: _value(key, value, known[key]) for key, value in settings.items()}}
    for key, allowed in CHOICES.items():
        if own[key] not in allowed:
            raise UserError(f"{key}={own[key]} is none of {', '.join(allowed)}")
    if own["workers"] < 0 or own.get("origin", 0) not in (0, 1):
        raise UserError("workers= must be 0 or more, and origin= 0 or 1")
    return own


def _value(key: str, value, default):
    kind = default if isinstance(default, type) else type(default)
    try:
        if key == "scales":
            parts = value if isinstance(value, (list, tuple)) else str(value).split(",")
            return tuple(float(part) for part in parts)
        if key == "names":
            parts = value if isinstance(value, (list, tuple)) else re.sub(r"^\[(.*)\]$", r"\1", str(value)).split(",")
            return [str(part).strip() for part in parts]
        if key == "version":
            return f"{float(value):.1f}"
        if kind is bool:
            return {"true": True, "false": False}[str(value).lower()]
        if kind is int and float(value) != int(value):
            raise ValueError
        return kind(value)
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        hint = f"it takes {_TYPES[default]}" if isinstance(default, type) else f"the default is {shown}"
        raise UserError(f"{key}={value} is not understood; {hint}") from error


def _default_dest(kind: str, root: Path, own: dict) -> Path:
    """Where data/dior.yaml, data/dota.yaml and Ultralytics' VisDrone.yaml look; others get names of their own there."""
    from ultralytics.utils import DATASETS_DIR

    rotated = "-rotated" if own["boxes"] == "rotated" else ""
    version = f"-v{own['version']}" if own.get("version", "1.0") != "1.0" else ""
    root = root.resolve()
    name = root.name if root.is_dir() else root.stem  # of a folder what follows a dot is no ending
    name = {"dior": "DIOR", "dota": f"DOTA{version}", "visdrone": "VisDrone"}.get(kind) or f"{name}-yolo"
    return Path(DATASETS_DIR) / (name + rotated)


def _merge(_: str, paths: list[str], settings: dict) -> None:
    from ds2d2_yolo.datasets.submit import run
    from ds2d2_yolo.restricted import trusted

    if not 1 <= len(paths) <= 2:
        raise UserError("merge needs a data set: python -m ds2d2_yolo.datasets merge DATA.yaml model=best.pt [DEST]")
    if unknown := settings.keys() - MERGING.keys():
        raise UserError(f"unknown setting '{min(unknown)}' of merge; there are {', '.join(MERGING)}")
    own = {key: _value(key, value, MERGING[key]) for key, value in settings.items() if value is not None}
    with trusted(own.pop("trust", False)):
        run(paths[0], target=paths[1] if len(paths) > 1 else None, **own)


def _to_coco(_: str, paths: list[str], settings: dict) -> None:
    from ds2d2_yolo.datasets.to_coco import write

    if not 1 <= len(paths) <= 2 or settings.keys() - {"split"}:
        raise UserError("usage: python -m ds2d2_yolo.datasets tococo DATA.yaml [FILE.json] split=val")
    split = str(settings.get("split", "val"))
    print(write(paths[0], split, target=paths[1] if len(paths) > 1 else None))
