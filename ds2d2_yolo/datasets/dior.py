"""DIOR as it is distributed: 23,463 images of 800 x 800 pixels, 20 classes, split by lists."""

from __future__ import annotations

from functools import partial

from ds2d2_yolo.datasets.objects import Job, Plan
from ds2d2_yolo.datasets.source import IMAGES, UNREAD, File, Source, path_of
from ds2d2_yolo.datasets.splits import without_column
from ds2d2_yolo.datasets.voc_xml import read_objects
from ds2d2_yolo.errors import UserError

NAMES = [  # the order of the authors' table
    *("airplane", "airport", "baseballfield", "basketballcourt", "bridge", "chimney", "dam"),
    *("Expressway-Service-area", "Expressway-toll-station", "golffield", "groundtrackfield", "harbor", "overpass"),
    *("ship", "stadium", "storagetank", "tenniscourt", "trainstation", "vehicle", "windmill"),
]
OFFICIAL = {"train": 5862, "val": 5863, "test": 11738}
FOLDERS = {"horizontal": "Horizontal Bounding Boxes", "rotated": "Oriented Bounding Boxes"}


def plan(source: Source, boxes: str = "horizontal") -> Plan:
    """Plan the conversion of DIOR.

    Args:
        source: Holds ``ImageSets/Main/{train,val,test}.txt``, ``Annotations`` and the images, as folders or zip files.
        boxes: ``horizontal`` or ``rotated``: which annotations are taken.

    Raises:
        UserError: No split lists, no annotations, or no images.
    """
    lists = split_lists(source)
    if not lists:
        raise UserError(
            f"'{source.root}' holds no ImageSets/Main/train.txt, val.txt or test.txt; DIOR's figures need its own split"
        )
    notes, others = _annotations(source, FOLDERS[boxes])
    if not notes:
        raise UserError(f"'{source.root}' holds no 'Annotations/{FOLDERS[boxes]}/*.xml'; boxes={boxes} needs them")
    images, doubles = by_stem([f for f in source.images if not f.under("Annotations")])
    if not images:
        raise UserError(f"'{source.root}' holds no images; put JPEGImages-trainval and JPEGImages-test there")
    result = Plan("DIOR", NAMES, [], {"train": ["train", "val"], "val": ["test"], "test": ["test"]})
    index, seen = {name: i for i, name in enumerate(NAMES)}, {}
    for split, stems in lists.items():
        for stem in stems:
            if stem in seen:
                result.problems[f"in the lists twice (taken as {seen[stem]})"].append(stem)
                continue
            seen[stem] = split
            if stem not in images:
                result.problems["listed, but its image is missing"].append(f"{split}/{stem}")
            elif stem not in notes:
                result.problems["image without annotation (left out)"].append(f"{split}/{stem}")
            else:
                job = Job(split, images[stem], partial(_read, notes[stem], index, boxes == "rotated"))
                result.jobs.append(job)
    unlisted = sorted(set(images) - set(seen))
    result.problems["image in no split list (left out)"] += unlisted
    result.problems["annotation without image"] += sorted(set(notes) - set(images))
    result.problems["two images of one name (the first is taken)"] += [str(f) for f in doubles]
    reason = f"two annotations of one name (the one right in '{FOLDERS[boxes]}' is taken, else the first)"
    result.problems[reason] += sorted(map(str, others))
    for split, number in OFFICIAL.items():
        if len(lists.get(split, ())) != number:
            found = f"{len(lists[split]):,}" if split in lists else "no"
            result.problems[f"{split}.txt is not the official split of {number:,} images"].append(f"{found} in it")
    return result


def _annotations(source: Source, folder: str) -> tuple[dict[str, File], list[File]]:
    """The annotations by stem, of two the one right in the folder and not in one such as ``old`` in it; and others."""
    found = [f for f in source.files if f.path.suffix.lower() == ".xml" and f.under(folder)]
    return by_stem(sorted(found, key=lambda f: f.path.parts[-2].lower() != folder.lower()))


def split_lists(source: Source) -> dict[str, list[str]]:
    """Return the stems that ``ImageSets/Main/{train,val,test}.txt`` name.

    Raises:
        UserError: One of them cannot be read.
    """
    found = {}
    for split in OFFICIAL:
        for file in source.files:
            if file.path.name == f"{split}.txt" and file.under("ImageSets"):
                try:
                    text = file.read().decode("utf-8-sig", "surrogateescape")  # as names of files are decoded
                except OSError as error:
                    raise UserError(f"'{file}' cannot be read: {error.strerror or error}") from error
                found[split] = [_stem(line) for line in text.splitlines() if line.strip()]
                break
    return found


def _stem(line: str) -> str:
    """The image that a line of a list names; some copies add VOC's column of 1 and -1, or the suffix."""
    path = path_of(without_column(line))
    return path.stem if path.suffix.lower() in {*IMAGES, *UNREAD, ".xml"} else str(path)


def by_stem(files: list[File]) -> tuple[dict[str, File], list[File]]:
    """Return the first file of every stem, and the others."""
    first, others = {}, []
    for file in files:
        if file.path.stem in first:
            others.append(file)
        first.setdefault(file.path.stem, file)
    return first, others


def _read(note: File, index: dict[str, int], rotated: bool):
    try:
        return read_objects(note.read(), index, rotated)
    except OSError as error:
        raise ValueError("annotation that cannot be read") from error
