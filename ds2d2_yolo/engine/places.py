"""Files that a run names by relative paths, found again by who resumes it from another folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

NAMED = ("data", "teacher", "amplifier", "distill_model", "pretrained", "model", "backbone_weights")


def resolved(args: Mapping) -> dict:
    """Return those of a run's files, by setting, that are not here but where it was begun (``begun_in``)."""
    found, begun_in = {}, args.get("begun_in")
    for key in NAMED:
        value = args.get(key)
        if not begun_in or not isinstance(value, (str, Path)) or not value or Path(value).exists():
            continue
        there = os.path.join(begun_in, value)  # an absolute path stays as it is
        if os.path.isfile(there):
            found[key] = there
    return found
