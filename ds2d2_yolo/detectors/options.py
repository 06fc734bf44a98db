"""Reads a head's options from a model YAML."""

from __future__ import annotations

import math
from dataclasses import fields
from difflib import get_close_matches

from ds2d2_yolo.errors import UserError

_SHARES = ("_iou", "_positives", "score")  # endings of what lies between 0 and 1
# RoIAlign takes 0 as: as many samples as pixels
_MAY_BE_ZERO = (*_SHARES, "_gain", "roi_sampling", "norm_groups", "box_convs")


def read(kind: type, given: dict | None, head: str):
    """Return the dataclass ``kind`` filled with ``given``.

    Raises:
        UserError: An option that ``kind`` does not have, one that is not of its default's type, or out of its range.
    """
    if not isinstance(given or {}, dict):
        raise UserError(f"{head}'s options in the model's YAML must be names with values, not {given}")
    defaults = {f.name: f.default for f in fields(kind)}
    values = {}
    for name, value in (given or {}).items():
        if name not in defaults:
            near = get_close_matches(str(name), defaults, n=1) or list(defaults)
            raise UserError(f"{head} has no option '{name}' (in the model's YAML); did you mean {', '.join(near)}?")
        values[name] = _checked(head, name, value, defaults[name])
    return kind(**values)


def require(met: bool, head: str, problem: str) -> None:
    """Raise a UserError that names ``head`` and ``problem`` where options do not go together."""
    if not met:
        raise UserError(f"{head}: {problem} (in the model's YAML)")


def _checked(head: str, name: str, value, default):
    many = isinstance(default, tuple)
    if many != isinstance(value, (list, tuple)) or value in ([], ()):
        raise _wrong(head, name, value, "a list of numbers" if many else "a number")
    items = list(value) if many else [value]
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in items):
        raise _wrong(head, name, value, "a list of numbers" if many else "a number")
    kind = type(default[0]) if many else type(default)
    if any(kind(v) != v for v in items):
        raise _wrong(head, name, value, "whole numbers" if many else "a whole number")
    if min(items) < 0 or (min(items) == 0 and not name.endswith(_MAY_BE_ZERO)):
        raise _wrong(head, name, value, "at least 0" if name.endswith(_MAY_BE_ZERO) else "greater than 0")
    if max(items) > 1 and name.endswith(_SHARES):
        raise _wrong(head, name, value, "between 0 and 1")
    return tuple(kind(v) for v in items) if many else kind(value)


def _wrong(head: str, name: str, value, what: str) -> UserError:
    return UserError(f"{head}: option {name}={value} in the model's YAML must be {what}")
