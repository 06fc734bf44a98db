"""Reads a head's options from a model YAML."""

from __future__ import annotations

from dataclasses import fields
from difflib import get_close_matches

from ds2d2_yolo.errors import UserError


def read(kind: type, given: dict | None, head: str):
    """Return the dataclass ``kind`` filled with ``given``.

    Raises:
        UserError: An option that ``kind`` does not have, or one that is not of its default's type.
    """
    defaults = {f.name: f.default for f in fields(kind)}
    values = {}
    for name, value in (given or {}).items():
        if name not in defaults:
            near = get_close_matches(str(name), defaults, n=1) or list(defaults)
            raise UserError(f"{head} has no option '{name}' (in the model's YAML); did you mean {', '.join(near)}?")
        values[name] = _checked(head, name, value, defaults[name])
    return kind(**values)


def _checked(head: str, name: str, value, default):
    many = isinstance(default, tuple)
    items = value if many and isinstance(value, (list, tuple)) else [value]
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) and v >= 0 for v in items)
    if not numbers or (many and (not isinstance(value, (list, tuple)) or not value)):
        what = "a list of numbers" if many else "a number"
        raise UserError(f"{head}: option {name}={value} in the model's YAML must be {what}, none of them negative")
    kind = type(default[0]) if many else type(default)
    if any(kind(v) != v for v in items):
        raise UserError(f"{head}: option {name}={value} in the model's YAML must be whole numbers")
    return tuple(kind(v) for v in items) if many else kind(value)
