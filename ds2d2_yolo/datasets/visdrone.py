"""VisDrone-DET as it is distributed: images from drones, 10 classes, a text file of upright boxes an image."""

from __future__ import annotations

from collections import Counter, defaultdict

from ds2d2_yolo.datasets.objects import Objects, Plan, upright
from ds2d2_yolo.datasets.pairs import add_jobs
from ds2d2_yolo.datasets.source import File, Source
from ds2d2_yolo.datasets.splits import data_yaml, split_of_folders
from ds2d2_yolo.errors import UserError

NAMES = [  # from 1 on in the files
    *("pedestrian", "people", "bicycle", "car", "van", "truck", "tricycle", "awning-tricycle", "bus", "motor")
]
OFFICIAL = {"train": 6471, "val": 548, "test": 1610}
_COLUMNS = 8  # left, top, width, height, score, class, truncation, occlusion
_IGNORED, _OTHERS = 0, 11


def plan(source: Source, boxes: str = "horizontal", split: str = "train") -> Plan:
    """Plan the conversion of VisDrone-DET.

    Args:
        source: Holds ``VisDrone2019-DET-train``, ``-val`` and ``-test-dev``, each with ``images`` and ``annotations``,
            as folders or zip files, or is one of these; of other names all is taken as ``split``. ``-test-challenge``,
            which has no annotations, is the test split where there is no other.
        boxes: ``horizontal``; there are no others.
        split: See ``source``.

    Raises:
        UserError: No annotations, no images, or annotations that are not VisDrone-DET's.
    """
    if boxes != "horizontal":
        raise UserError(f"boxes={boxes}: VisDrone has upright boxes alone; leave boxes= out")
    if split not in OFFICIAL:
        raise UserError(f"split={split} is none of {', '.join(OFFICIAL)}")
    images, notes = defaultdict(list), defaultdict(list)
    name = source.root.resolve().name
    if split == "train" and "visdrone" in name.lower():
        split = split_of_folders((name,)) or split
    for file in source.images:
        images[split_of_folders(file.folders) or split].append(file)
    for file in source.files:
        if file.path.suffix.lower() == ".txt" and file.under("annotations"):
            notes[split_of_folders(file.folders) or split].append(file)
    if not notes:
        raise UserError(f"'{source.root}' holds no annotations/*.txt; give the folder above VisDrone2019-DET-train")
    if not images:
        raise UserError(f"'{source.root}' holds no images; they belong beside annotations, in images")
    result = Plan("VisDrone", NAMES, [], {}, settings={} if split == "train" else {"split": split})
    for place in OFFICIAL:
        _plan_split(result, place, images[place], notes[place])
    _check(result, source)
    result.yaml = data_yaml(result.jobs)
    return result


def _plan_split(result: Plan, split: str, images: list[File], notes: list[File]) -> None:
    if split == "test" and not any(map(_of_challenge, notes)):
        others = [file for file in images if not _of_challenge(file)]
        if others or notes:
            reason = "image of the challenge, which nobody annotated (left out, as there is another test folder)"
            result.problems[reason] += [file.path.stem for file in images if _of_challenge(file)]
            images = others
    add_jobs(result, split, images, notes, _read)
    found = sum(job.split == split and job.read is not None for job in result.jobs)
    if notes and found != OFFICIAL[split]:
        result.problems[f"{split} is not the official split of {OFFICIAL[split]:,} images"].append(f"{found:,} in it")


def _of_challenge(file: File) -> bool:
    return any("challenge" in folder.lower() for folder in file.folders)


def _check(result: Plan, source: Source) -> None:
    """Refuse what is something else, such as the annotations of videos, before a single image is converted."""
    if not result.jobs:
        raise UserError(
            f"no image of '{source.root}' has an annotation of its name; VisDrone-DET has a file an image (VisDrone's "
            "videos have one each, and are not read)"
        )
    reasons = Counter()
    for job in result.jobs:
        try:
            if len(job.objects()):
                return
        except ValueError as error:
            reasons[str(error)] += 1
    if reasons:
        said = ", ".join(f"{number} x {reason}" for reason, number in reasons.most_common(3))
        raise UserError(
            f"no annotation of '{source.root}' is VisDrone-DET's ({said}): lines of left, top, width, height, score, "
            "class, truncation and occlusion"
        )


def read_text(text: str) -> Objects:
    """Read an annotation file: a line an object. Regions that are to be ignored and ``others`` are counted as problems.

    Raises:
        ValueError: No line of it is an annotation's, though it is not empty.
    """
    rows, problems = [], Counter()
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    for line in lines:
        values = _numbers(line)
        if values is None:
            problems["line that is no annotation"] += 1
            continue
        left, top, width, height, score, kind = values[:6]
        if kind == _IGNORED:
            problems["region to be ignored (left out)"] += 1
        elif kind == _OTHERS:
            problems["object of the class 'others' (left out)"] += 1
        elif kind not in range(1, len(NAMES) + 1):
            problems[f"unknown class '{kind:g}'"] += 1
        elif score == 0:
            problems["object that is not to be rated, score 0 (left out)"] += 1
        else:
            rows.append((int(kind) - 1, upright(left, top, left + width, top + height), False))
    if lines and problems["line that is no annotation"] == len(lines):
        raise ValueError("annotation without a single valid line")
    return Objects.of(rows, +problems)


def _numbers(line: str) -> list[float] | None:
    """The values of a line, which may end in a comma."""
    try:
        values = [float(part) for part in line.rstrip(",").split(",")]
    except ValueError:
        return None
    return values if len(values) == _COLUMNS and all(abs(value) < 1e9 for value in values) else None


def _read(note: File) -> Objects:
    try:
        return read_text(note.read().decode("utf-8-sig", "replace"))
    except OSError as error:
        raise ValueError("annotation that cannot be read") from error
