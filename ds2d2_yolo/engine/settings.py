"""The settings that DS2D2 adds to Ultralytics' own: defaults from ``cfg/ds2d2.yaml``, checks, and how they travel."""

from __future__ import annotations

from copy import deepcopy
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import pywt
from ultralytics.cfg import DEFAULT_CFG_DICT
from ultralytics.utils import YAML, IterableSimpleNamespace

from ds2d2_yolo.distill.alongside import ALONGSIDE
from ds2d2_yolo.distill.balance import TERMS
from ds2d2_yolo.errors import UserError
from ds2d2_yolo.method.wavelet import KINDS, MODES
from ds2d2_yolo.paths import CFG, find_config
from ds2d2_yolo.plausible import check_settings, layers, of_today

CHOICES = {
    "branch": ("one2many", "one2one"),
    "balance": ("gradient", "fixed"),
    "implicit": ("together", "turns"),
    "clip": ("labels", "all"),
    "adapter": ("auto", "always", "never"),
    "normalize": ("none", "channel", "teacher"),
    "high_frequency": KINDS,
}
MINIMUM = dict.fromkeys(TERMS, 0) | {
    "amplifier_epochs": 1,
    "balance_interval": 1,
    "distill_warmup": 0,
    "distill_final": 0,
    "implicit_box": 0,
    "warmup_iterations": 0,
}
TORCHVISION_WEIGHTS = ("IMAGENET1K_V1", "IMAGENET1K_V2", "DEFAULT")  # names that its ResNets' weights go by
# What plain training knows, too
UNDISTILLED = (
    "teacher",
    "inherit",
    "exact",
    "trust",
    "student_run",
    "begun_in",
    "begun_with",
    "nesterov",
    "lr_steps",
    "lr_gamma",
)
UNDISTILLED += ("warmup_iterations", "backbone_weights", "frozen_bn", "frozen_stages")
# What the amplifier stage needs to know of the run it prepares, from which folder a run's relative paths lead, and what
# it was asked for that resuming replaces (``model``, ``amplifier``); internal, hence not in the YAML file.
INTERNAL = {"student_run": None, "begun_in": None, "begun_with": None}


@lru_cache(maxsize=1)
def _file() -> dict:
    return YAML.load(CFG / "ds2d2.yaml")


def defaults() -> dict:
    """Return every DS2D2 setting with its default."""
    return {**deepcopy(_file()), **INTERNAL}


def check(overrides: dict) -> dict:
    """Return ``overrides`` with DS2D2's settings checked and numbers converted.

    Raises:
        UserError: An unknown setting (the nearest names are suggested), a value out of range, or two teachers.
    """
    known = {**DEFAULT_CFG_DICT, **defaults()}
    checked = dict(overrides := of_today(overrides))
    for key, value in overrides.items():
        if key in ("augmentations", "save_dir"):  # Ultralytics accepts these two without listing them
            continue
        if key not in known:
            nearest = get_close_matches(str(key), known)  # a YAML file's keys may be numbers
            hint = f"; did you mean {' or '.join(nearest)}?" if nearest else "; see cfg/ds2d2.yaml"
            raise UserError(f"unknown setting '{key}'{hint}")
        if key == "backbone_weights":
            checked[key] = _weights(key, value, gone=_has_weights(overrides))
        elif key in _file():
            checked[key] = _check_one(key, value)
    if checked.get("task") not in (None, "detect"):
        raise UserError(
            f"task={checked['task']}: what is trained here detects upright boxes; take such a model, and task=detect"
        )
    check_settings(overrides)
    if checked.get("data"):
        checked["data"] = find_config(checked["data"], "data")
    if "freeze" in checked:
        checked["freeze"] = layers(checked["freeze"])
    if checked.get("teacher") and checked.get("distill_model"):
        raise UserError("teacher= is DS2D2's and distill_model= Ultralytics' own distillation; give one of them")
    if checked.get("lr_steps") and checked.get("cos_lr"):
        raise UserError("lr_steps= and cos_lr= are two ways for the learning rate to fall; give one of them")
    return checked


def _has_weights(overrides: dict) -> bool:
    """Whether the model comes with weights: those that its backbone began with may be gone by now."""
    given = overrides.get("pretrained")
    if given is False or isinstance(given, (str, Path)):
        return bool(given)
    return bool(overrides.get("resume")) or Path(str(overrides.get("model"))).suffix == ".pt"


def _check_one(key: str, value):
    default = _file()[key]
    if key in ("teacher", "amplifier"):
        word = str(value).lower() if key == "amplifier" else ""
        return None if value in (None, "") else word if word in ("auto", ALONGSIDE) else str(value)
    if key in CHOICES:
        value = str(value).lower()
        if value not in CHOICES[key]:
            raise UserError(f"{key}={value} is not one of {', '.join(CHOICES[key])}")
        return value
    if key in MINIMUM:
        return _number(key, value, type(default))
    if key in SPECIAL:
        return SPECIAL[key](key, value)
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise UserError(f"{key}={value} is neither True nor False")
        return value
    return _pywt_name(key, str(value))


def _number(key: str, value, kind: type):
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not MINIMUM[key] <= value < float("inf"):
        raise UserError(f"{key}={value} must be a number of at least {MINIMUM[key]}")
    if kind is int and value != int(value):
        raise UserError(f"{key}={value} must be a whole number")
    return kind(value)


def _pywt_name(key: str, value: str) -> str:
    names = pywt.wavelist(kind="discrete") if key == "wavelet" else MODES
    if value not in names:
        nearest = get_close_matches(value, names) or (["haar", "db2", "sym4"] if key == "wavelet" else names)
        raise UserError(f"unknown {key} '{value}'; did you mean {' or '.join(nearest)}?")
    return value


def _epochs(key: str, value) -> list[int]:
    """``16,22``, ``[16, 22]``, ``16`` or nothing, as the command line and YAML files have them."""
    given = [] if value in (None, "") else value
    if isinstance(given, str):
        given = [int(part) if part.strip().isdecimal() else part for part in given.split(",")]
    given = list(given) if isinstance(given, (list, tuple)) else [given]
    whole = all(isinstance(e, int) and not isinstance(e, bool) and e >= 1 for e in given)
    if not whole or given != sorted(set(given)):
        raise UserError(f"{key}={value} must be whole epochs from 1 in ascending order, such as 16,22")
    return given


def _factor(key: str, value) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise UserError(f"{key}={value} must be a number above 0 and at most 1")
    return float(value)


def _weights(key: str, value, gone: bool = False) -> str:
    """The name of weights, or a file of some; ``gone``: one that is not needed any more."""
    text = "none" if value is None else str(value)
    for name in ("imagenet", "none", *TORCHVISION_WEIGHTS):
        if text.lower() == name.lower():
            return name
    if isinstance(value, (str, Path)) and text and (gone or Path(text).is_file()):
        return text
    raise UserError(f"{key}={value} is neither imagenet, none, one of {', '.join(TORCHVISION_WEIGHTS)} nor a file")


def _switch_or_auto(key: str, value) -> bool | str:
    value = value.lower() if isinstance(value, str) else value
    if not (isinstance(value, bool) or value == "auto"):
        raise UserError(f"{key}={value} is neither True, False nor auto")
    return value


def _stages(key: str, value) -> int | str:
    value = value.lower() if isinstance(value, str) else value
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 5):
        return value
    raise UserError(f"{key}={value} is neither auto nor a whole number from 0 to 5")


SPECIAL = {
    "lr_steps": _epochs,
    "lr_gamma": _factor,
    "backbone_weights": _weights,
    "frozen_bn": _switch_or_auto,
    "frozen_stages": _stages,
}


def of(args) -> SimpleNamespace:
    """Return DS2D2's part of a trainer's arguments; what an older checkpoint lacks gets its default."""
    return SimpleNamespace(**{k: getattr(args, k, v) for k, v in defaults().items()})


def without_effect(args) -> list[str]:
    """Return the settings that say how to distil and are not at their defaults, as ``key=value``."""
    given, usual = of(args), defaults()
    return [f"{k}={getattr(given, k)}" for k in usual if k not in UNDISTILLED and getattr(given, k) != usual[k]]


def weights(own) -> str:
    """Say what a student is taught by: the terms' weights, and the amplifier where one is asked."""
    terms = ", ".join(f"{name} {getattr(own, name):g}" for name in TERMS)
    relative = " of the detection gradient" if own.balance == "gradient" else ""
    amplifier = f"amplifier {Path(str(own.amplifier)).name}" if own.im_high > 0 else "no amplifier"
    return f"weights{relative}: {terms}; {amplifier}"


def high_pass(args) -> tuple[str, str, str]:
    """Return how high frequencies are taken, as ``high_frequency_map`` wants it after the map."""
    own = of(args)
    return own.wavelet, own.wavelet_padding, own.high_frequency


def ultralytics_only(args) -> IterableSimpleNamespace:
    """Return the arguments without DS2D2's: Ultralytics' validators refuse settings they do not know."""
    return IterableSimpleNamespace(**{k: v for k, v in vars(args).items() if k not in defaults()})
