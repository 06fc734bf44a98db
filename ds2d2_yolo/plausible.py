"""What Ultralytics takes without a look, to stumble over it later or to compute nonsense with it."""

from __future__ import annotations

import glob
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from reprlib import repr

from torch import nn
from ultralytics.cfg import CFG_FLOAT_KEYS, CFG_FRACTION_KEYS, CFG_INT_KEYS, QUANTIZE_ALIASES, get_cfg
from ultralytics.utils import YAML
from ultralytics.utils.checks import check_file

from ds2d2_yolo.errors import UserError
from ds2d2_yolo.paths import find_config

_LAYER = re.compile(r"\d+(\.\w+)*")
LEGACY = {"half", "int8", "end2end"}  # Ultralytics' older names for quantize=16, quantize=8 and nms=False
OLDER = {"half": "quantize", "int8": "quantize", "end2end": "nms"}  # what it still takes, and puts in its place
OLDER |= {"boxes": "show_boxes", "hide_labels": "show_labels", "hide_conf": "show_conf"}
OLDER |= {"line_thickness": "line_width"} | dict.fromkeys(("label_smoothing", "save_hybrid", "crop_fraction", "keras"))
_NUMBERS = (CFG_FLOAT_KEYS | CFG_FRACTION_KEYS | CFG_INT_KEYS) - {"multi_scale"}  # of old, this was True or False
_NOT_NEGATIVE = ("box", "close_mosaic", "cls", "dfl", "dis", "time", "warmup_epochs", "workers")
_PATHS = ("data", "model", "distill_model", "save_dir", "explain", "images")
_NAMES = ("teacher", "amplifier", "baseline", "project", "name")  # a number is as good a name as any
_LONGEST = 240  # bytes of a folder's name, with room for what is added to it
_MOST_CLASSES = 100_000  # a head for more than these would fill the memory of the machine before anything else is said
_SPLITS = ("train", "val", "test", "minival")


def check_settings(settings: dict) -> None:
    """Check Ultralytics' own settings, and what every setting has in common.

    Raises:
        UserError: A key that is no text, a number that is NaN or infinite, a file that is no text, a value out of
            range; None is left to whoever knows what it stands for.
    """
    for key, value in settings.items():
        if not isinstance(key, str):
            raise UserError(f"unknown setting '{key}'; settings are names, as in epochs: 100")
        _check_parts(key, value)
        if value is None:
            continue
        if key in _NUMBERS and isinstance(value, bool):
            raise UserError(f"{key}={value} must be a number")
        if key in _NOT_NEGATIVE and isinstance(value, (int, float)) and value < 0:
            raise UserError(f"{key}={value} must be a number of at least 0")
        if key in _PATHS + _NAMES:
            _check_path(key, value)
        if key in _SPECIAL:
            _SPECIAL[key](key, value)


def data_file(name) -> str:
    """Return where the data set lies, found as in training: here, or by its bare name among the shipped ones or
    Ultralytics' own.

    Raises:
        UserError: Nowhere.
    """
    name = str(find_config(name, "data"))
    if Path(name).exists():
        return name
    if Path(name).name == name and not glob.has_magic(name):
        bare = Path(name).suffix not in {".yaml", ".yml"}
        for spelt in (f"{name}.yaml", f"{name}.yml") if bare else (name,):
            if found := check_file(spelt, download=False, hard=False):
                return found
    raise UserError(f"data file '{name}' does not exist")


def check_data_file(file, split: str = "") -> None:
    """Check what a data set's YAML file says; whether its images are there is Ultralytics' to find out.

    Raises:
        UserError: Classes that are not numbered from 0 or have no names, splits that are no paths, or no ``split``.
        yaml.YAMLError: It is no YAML.
    """
    if Path(str(file)).suffix not in {".yaml", ".yml"} or not Path(file).is_file():
        return  # a folder, a zip file, or the name of one that comes with Ultralytics
    data = YAML.load(file)
    if not isinstance(data, dict):
        raise UserError(f"data file '{file}' has no keys, such as train:, val: and names:")
    if data.get("names") is not None:
        _check_names(file, data["names"])
    classes = data.get("nc") if data.get("names") is None else len(data["names"])
    if isinstance(classes, int) and classes > _MOST_CLASSES:
        raise UserError(f"data file '{file}' has {classes} classes; at most {_MOST_CLASSES} can be told apart here")
    for key in _SPLITS:
        if data.get(key) and not _is_paths(data[key]):
            raise UserError(f"data file '{file}': '{key}: {repr(data[key])}' is no path, nor a list of paths")
    if "val" not in data and data.get("validation"):  # Ultralytics renames it
        data["val"] = data["validation"]
    there = [key for key in _SPLITS if data.get(key)]
    if split and there and split not in there and not _is_paths(data.get(split)):
        raise UserError(f"data file '{file}' has no split '{split}'; it has {', '.join(there)}")
    for key in ("path", *_SPLITS):
        _check_parts(f"data file '{file}': {key}", data.get(key))
    channels = data.get("channels")
    if channels is not None and (isinstance(channels, bool) or not isinstance(channels, int) or channels < 1):
        raise UserError(f"data file '{file}': 'channels: {channels}' must be a whole number of at least 1")


def check_class_numbers(classes, names: dict) -> None:
    """Check that ``classes=`` names classes of the data.

    Raises:
        UserError: A number that no class has.
    """
    for number in [] if classes is None else classes if isinstance(classes, Iterable) else [classes]:
        if number not in names:
            raise UserError(f"classes={number}: the data have {len(names)} classes, numbered from 0")


def bits(quantize: int | str | None) -> int | str | None:
    """Return ``quantize=`` under the name that Ultralytics keeps of its many: 8 for int8, "8" and w8a8."""
    return QUANTIZE_ALIASES.get(str(quantize).lower(), quantize)


def of_today(settings: dict) -> dict:
    """Return settings with Ultralytics' older names replaced, or left out, as it does, which says so in the log."""
    older = settings.keys() & OLDER.keys()
    if not older:
        return settings
    new = {OLDER[key] for key in older} - {None}
    plan = get_cfg(overrides={key: value for key, value in settings.items() if key in older | new})
    kept = {key: value for key, value in settings.items() if key not in older}
    return {**kept, **{key: getattr(plan, key) for key in new}}


def _check_names(file, names) -> None:
    numbered = dict(enumerate(names)) if isinstance(names, list) else names
    try:
        fits = (
            isinstance(numbered, dict)
            and sorted(map(int, numbered)) == list(range(len(numbered)))
            and len(numbered) > 0
        )
    except (TypeError, ValueError):  # no dict, or keys that are no numbers
        fits = False
    if not fits:
        raise UserError(f"data file '{file}': 'names:' must give every class from 0 on a name, as in [ship, plane]")
    for number, name in numbered.items():
        if name is None or isinstance(name, (list, dict)) or not str(name).strip():
            raise UserError(f"data file '{file}': class {number} has no name under 'names:'")


def _is_paths(value) -> bool:
    paths = value if isinstance(value, list) else [value]
    return bool(paths) and all(isinstance(path, str) and path.strip() for path in paths)


def _check_parts(key: str, value) -> None:
    """Refuse what no setting can be, alone or in a list."""
    several = isinstance(value, (list, tuple))
    for part in value if several else [value]:
        # A list may be endless, or hold itself; Albumentations' transforms become dicts on their way to other processes
        if several and isinstance(part, (list, tuple, dict)) and (key, type(part)) != ("augmentations", dict):
            raise UserError(f"{key}={repr(value)} must not be a list of lists")
        if isinstance(part, float) and not math.isfinite(part):
            raise UserError(f"{key}={part} must be a finite number")
        if isinstance(part, (str, Path)) and not _is_text(str(part)):
            raise UserError(f"{key}={repr(str(part))} holds what no text does: a zero byte, or bytes that are no UTF-8")


def _is_text(value: str) -> bool:
    try:
        return b"\0" not in value.encode()
    except UnicodeEncodeError:
        return False


def _check_path(key: str, value) -> None:
    kinds = (str, Path, int, float) if key in _NAMES else (str, Path)
    kinds += {"model": (list, tuple, nn.Module), "images": (list, tuple)}.get(key, ())
    if isinstance(value, bool) or not isinstance(value, kinds):
        hint = f", such as ./{value}" if isinstance(value, (int, float)) and not isinstance(value, bool) else ""
        raise UserError(f"{key}={value} must be a path{hint}")
    if key == "name" and (Path(str(value)).name in ("", os.pardir) or len(os.fsencode(str(value))) > _LONGEST):
        raise UserError(f"name={value} must be a short name of a folder, such as name=first")


def _size(key: str, value, given=None) -> None:
    sizes = value if isinstance(value, (list, tuple)) else [value]
    whole = all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes)
    if not (isinstance(value, str) or (whole and len(sizes) in (1, 2))):  # texts Ultralytics reads itself
        given = value if given is None else given
        raise UserError(f"{key}={given} must be a whole number of pixels, or height and width, such as {key}=640")


def pixels(value) -> int | list[int] | None:
    """Return an image size that was given as text, such as "640" or "480,640", in numbers; others as they are."""
    if not isinstance(value, str):
        return value
    edges = [int(edge) if edge.strip().isdecimal() else edge for edge in value.strip(" []()").split(",")]
    _size("imgsz", edges, value)
    return edges[0] if len(edges) == 1 else edges


def _batch(key: str, value) -> None:
    if isinstance(value, float) and value >= 1:
        raise UserError(f"{key}={value} must be a whole number of images")


def _numbers(key: str, value) -> None:
    numbers = value if isinstance(value, (list, tuple)) else [value]
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers):
        raise UserError(f"{key}={value} must be a number from 0 on, or several, such as {key}=0,2")


def _classes(key: str, value) -> None:
    if isinstance(value, (list, tuple)) and not value:
        raise UserError(f"{key}={value} leaves no class; leave {key}= out for all of them")
    _numbers(key, value)


def layers(value) -> list | int | None:
    """Return ``freeze=`` as Ultralytics' trainer takes it: it reads past the tuples and texts of a command line."""
    if isinstance(value, (str, float)):
        value = tuple(part.strip(" '\"") for part in str(value).strip("[]()").split(","))
        value = tuple(int(part) if part.isdecimal() else part for part in value)
    return list(value) if isinstance(value, tuple) else value


def _layers(key: str, value) -> None:
    value = layers(value)
    names = [part for part in value if isinstance(part, str)] if isinstance(value, list) else []
    if strange := [name for name in names if not _LAYER.fullmatch(name)]:
        raise UserError(f"{key}={strange[0]} is no layer's number or name, such as {key}=0,2 or {key}=23.cv2")
    _numbers(key, [part for part in value if not isinstance(part, str)] if names else value)


def _cache(key: str, value) -> None:
    if str(value).lower() not in ("true", "false", "ram", "disk"):
        raise UserError(f"{key}={value} is neither True, False, ram nor disk")


def _seed(key: str, value) -> None:
    if isinstance(value, (int, float)) and value >= 2**32:
        raise UserError(f"{key}={value} must be less than 2**32 = {2**32}")


_SPECIAL = {"imgsz": _size, "batch": _batch, "freeze": _layers, "classes": _classes, "cache": _cache, "seed": _seed}
