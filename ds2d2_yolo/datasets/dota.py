"""DOTA v1.0, v1.5 and v2.0 as they are distributed: large images, ``labelTxt`` with four corners an object."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from functools import partial

import numpy as np

from ds2d2_yolo.datasets.objects import Objects, Plan
from ds2d2_yolo.datasets.pairs import add_jobs
from ds2d2_yolo.datasets.source import File, Source
from ds2d2_yolo.datasets.splits import data_yaml, split_of_folders
from ds2d2_yolo.errors import UserError

NAMES = [
    *("plane", "ship", "storage-tank", "baseball-diamond", "tennis-court", "basketball-court", "ground-track-field"),
    *("harbor", "bridge", "large-vehicle", "small-vehicle", "helicopter", "roundabout", "soccer-ball-field"),
    *("swimming-pool", "container-crane", "airport", "helipad"),
]
CLASSES = {"1.0": 15, "1.5": 16, "2.0": 18}
SPLITS = ("train", "val", "test")
_UPRIGHT = re.compile(r"hbb|reclabel|task2", re.IGNORECASE)  # the same objects again, as upright boxes
_VERSION = re.compile(r"v?(\d\.\d)")
_HEADER = ("imagesource", "gsd", "acquisition dates")


def plan(source: Source, version: str = "1.0", split: str = "train") -> Plan:
    """Plan the conversion of DOTA.

    Args:
        source: Holds ``train``, ``val`` and ``test`` with ``images`` and ``labelTxt`` (or ``labelTxt-v1.5`` and the
            like), as folders or zip files; without such folders all is taken as ``split``.
        version: 1.0, 1.5 or 2.0: which classes there are, and which of several ``labelTxt`` is taken.
        split: See ``source``.

    Raises:
        UserError: Unknown version or split, no labels, no images, or not a single box in the labels.
    """
    if version not in CLASSES:
        raise UserError(f"version={version} of DOTA is none of {', '.join(CLASSES)}")
    if split not in SPLITS:
        raise UserError(f"split={split} is none of {', '.join(SPLITS)}")
    names = NAMES[: CLASSES[version]]
    images, notes = defaultdict(list), defaultdict(list)
    for file in source.images:
        images[_split_of(file, split)].append(file)
    for file in source.files:
        if file.path.suffix.lower() == ".txt" and _is_label(file, version):
            notes[_split_of(file, split)].append(file)
    if not notes:
        raise UserError(f"'{source.root}' holds no labelTxt of DOTA v{version}; give the folder above train and val")
    if not images:
        raise UserError(f"'{source.root}' holds no images; unpack part1.zip and so on, or leave the zip files there")
    result = Plan(f"DOTA v{version}", names, [], {}, settings={} if split == SPLITS[0] else {"split": split})
    for place in SPLITS:
        _plan_split(result, place, images[place], notes[place])
    _check_boxes(result, source)
    result.yaml = data_yaml(result.jobs)
    return result


def _plan_split(result: Plan, split: str, images: list[File], notes: list[File]) -> None:
    index = {name: i for i, name in enumerate(result.names)}
    taken = "DOTA's is taken, that of the version before others"
    add_jobs(result, split, images, notes, partial(_read, index=index), taken, partial(_doubts, index))


def _doubts(index: dict[str, int], note: File, elsewhere: bool) -> tuple[bool, bool, bool, bool]:
    """What speaks against an annotation if its image has others, the weightiest first."""
    try:
        count = len(_read(note, index))
    except ValueError:  # made for YOLO, such as labels/train beside labels/train_original
        return True, True, True, True
    return False, not _versions(note), elsewhere, not count  # a folder that names no version holds any


def _check_boxes(result: Plan, source: Source) -> None:
    """Refuse labels that are something else before hours go into tiles; those of DOTA are told by the first."""
    found, annotated = Counter(), [job for job in result.jobs if job.read]
    for job in annotated:
        try:
            objects = job.read()
        except ValueError as error:
            found[str(error)] += 1
            continue
        if len(objects):
            return
        found.update(objects.problems or ["no line"])
    if annotated:
        said = ", ".join(f"{number} x {reason}" for reason, number in found.most_common(3))
        raise UserError(
            f"no label of '{source.root}' has a box of {result.kind} ({said}); "
            "give the folder of DOTA's own labelTxt, lines of eight numbers, class and difficulty"
        )


def _split_of(file: File, default: str) -> str:
    return split_of_folders(file.folders) or default


def _is_label(file: File, version: str) -> bool:
    if _UPRIGHT.search(_place(file)) or not re.search(r"label|dota", _place(file), re.IGNORECASE):
        return False
    return version in (_versions(file) or {version})


def _versions(file: File) -> set[str]:
    """The versions of DOTA that the innermost folder, or zip file, above it names which names any."""
    named = (set(_VERSION.findall(folder)) & set(CLASSES) for folder in reversed(file.folders))
    return next(filter(None, named), set())


def _place(file: File) -> str:
    return "/".join([*file.path.parts[:-1], file.where.name if file.member else ""])


def read_text(text: str, index: dict[str, int]) -> Objects:
    """Read a ``labelTxt`` file: lines of four corners, class and difficulty, with or without the header's two lines.

    Raises:
        ValueError: No line of it is an annotation's, though it is not empty.
    """
    rows, problems, lines = [], Counter(), [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.lower().startswith(_HEADER)]
    for line in lines:
        parts = line.split()
        corners = _numbers(parts[:8])
        # YOLO's rows of class and corners are nine numbers
        if corners is None or len(parts) < 9 or _is_number(parts[8]):
            problems["line that is no annotation"] += 1
        elif parts[8] not in index:
            problems[f"unknown class '{parts[8]}'"] += 1
        else:
            rows.append((index[parts[8]], corners, len(parts) > 9 and parts[9] in ("1", "2")))
    if lines and problems["line that is no annotation"] == len(lines):
        raise ValueError("annotation without a single valid line")
    return Objects.of(rows, +problems)


def _numbers(parts: list[str]) -> np.ndarray | None:
    try:
        values = [float(part) for part in parts]
    except ValueError:
        return None
    return np.array(values).reshape(4, 2) if len(values) == 8 and all(map(math.isfinite, values)) else None


def _is_number(part: str) -> bool:
    try:
        float(part)
    except ValueError:
        return False
    return True


def _read(note: File, index: dict[str, int]) -> Objects:
    try:
        return read_text(note.read().decode("utf-8-sig", "replace"), index)
    except OSError as error:
        raise ValueError("annotation that cannot be read") from error
