"""Data sets annotated in COCO's detection JSON, one file a split."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import shapely

from ds2d2_yolo.datasets.coco_file import Listing, key_of, read
from ds2d2_yolo.datasets.coco_images import Claims, Images, Listed, beginning, settle, split_of_image
from ds2d2_yolo.datasets.objects import Job, Objects, Plan, upright
from ds2d2_yolo.datasets.source import File, Source
from ds2d2_yolo.datasets.splits import data_yaml, possible_splits
from ds2d2_yolo.errors import UserError

_OTHER_TASKS = ("captions_", "person_keypoints_", "panoptic_", "stuff_")  # COCO's own files beside instances_*


def plan(source: Source, names: list[str] | None = None, boxes: str = "horizontal") -> Plan:
    """Plan the conversion of COCO detection JSON files.

    A file's name tells its split (instances_val2017.json), else the folders it lies in (valid/_annotations.coco.json).
    Of one that names several (trainval, train_test2017) the images are taken that no file of one split lists, of one
    that names none (all.json) those that no other lists: their folders tell the split, else they are for training.
    Images are found by their ``file_name``, wherever they lie but in another split's folder. Of an image that two lists
    of a split name the objects of both are taken. Crowds are left out.

    Args:
        source: The data set's files.
        names: Classes in their order, out of the categories; default: all categories by ascending id.
        boxes: ``horizontal``, or ``rotated``: the smallest rectangle around an object's polygons, the upright box
            where it has none.

    Raises:
        UserError: No JSON file, one that is broken or something else, categories that differ between files.
    """
    if boxes not in ("horizontal", "rotated"):
        raise UserError(f"boxes '{boxes}' do not exist; give horizontal or rotated")
    if names is not None and (not names or len(set(names)) < len(names)):
        raise UserError("names of classes are empty or one is there twice; give each class once")
    files = [f for f in source.files if f.path.suffix.lower() == ".json" and not f.path.name.startswith(_OTHER_TASKS)]
    if not files:
        raise UserError(f"source '{source.root}' holds no COCO JSON file; give the folder above annotations and images")
    rotated, problems = boxes == "rotated", defaultdict(list)
    lists = _read(files, rotated, Images(f for f in source.files if f.is_image))
    listed, index, named = {}, {}, {}
    for alike in lists:
        taken = dict(named)  # by those before
        for one in alike:
            named |= _add(listed, one, problems, taken)
    known = {one.file: one.categories for alike in lists for one in alike if one.categories is not None}
    if not known:
        raise UserError(f"no JSON file of '{source.root}' has annotations, only lists of images")
    names = _all_names(known) if names is None else _checked_names(names, known)
    index.update((name, i) for i, name in enumerate(names))
    jobs = [
        Job(split, one.image, partial(_objects, index, rotated, one.notes, one.size) if one.notes else None, name)
        for (split, name), one in listed.items()
    ]
    splits = Counter(image for image, _ in {(job.image, job.split) for job in jobs})
    problems["in two split lists"] += [str(image.path) for image, count in splits.items() if count > 1]
    problems["image without annotation"] += [str(f.path) for f in source.images if f not in splits]
    return Plan("coco", names, jobs, data_yaml(jobs), {k: found for k, found in problems.items() if found})


def _read(files: list[File], rotated: bool, images: Images) -> list[list[Listing]]:
    """Read the lists of one split, those of several, those of none; which images each means, all together tell."""
    lists, claims = [], Claims()
    for number in (1, 2, 0):
        splits = {one.split for alike in lists for one in alike if one.counts and one.entries}
        alike = [file for file in files if number == min(len(possible_splits(file.folders, file.path.name)), 2)]
        lists.append([read(file, rotated, images, claims, splits) for file in alike])
    for one in (one for alike in lists for one in alike):
        if one.counts:
            settle(one.entries, claims, images, one.claimant)
    return lists


def _all_names(known: Mapping[File, dict[int, str]]) -> list[str]:
    """The categories' names, the same in all files and no two alike."""
    (first, categories), *others = known.items()
    for file, more in others:
        if differing := categories.items() ^ more.items():
            number, name = min(differing)
            here, there = (first, file) if categories.get(number) == name else (file, first)
            raise UserError(
                f"categories differ: '{name}' (id {number}) is in '{here}' and not in '{there}'; give names of classes"
            )
    names = list(categories.values())
    if odd := [name for name in names if not name.isprintable()]:  # half a character as well, which no file takes
        raise UserError(f"'{first}' has a category of the name {odd[0]!r}; give it one that can be printed")
    if not names:
        raise UserError(f"'{first}' has no categories")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"'{first}' has two categories of the name '{twice[0]}'; give names of classes")
    return names


def _checked_names(names: Sequence[str], known: Mapping[File, dict[int, str]]) -> list[str]:
    there = {name for categories in known.values() for name in categories.values()}
    if unknown := [name for name in names if name not in there]:
        raise UserError(f"there is no category '{unknown[0]}'; the files have {', '.join(sorted(there))}")
    return list(names)


def _add(
    listed: dict[tuple[str, str], Listed],
    one: Listing,
    problems: dict[str, list[str]],
    taken: Mapping[File | str, str],
) -> dict[File | str, str]:
    """Add the images of a file that are there and not taken; return its split by image, by name where none is found."""
    own_images, left = {}, False
    if not one.counts:
        return own_images
    times = Counter(entry.number for entry in one.entries)
    elsewhere = beginning(entry.name for entry in one.entries)
    for entry in one.entries:
        if times[entry.number] > 1:  # whose the annotations are cannot be told
            problems["duplicate image id"].append(f"{one.file.path}: {entry.name}")
            continue
        what = entry.name if entry.doubt else entry.found[0]
        own_images[what] = split = one.split or split_of_image(entry.parts[elsewhere:-1], entry.found)
        if what in taken or (entry.found and taken.keys() >= set(entry.found)):
            left = True
            continue
        if entry.doubt:
            problems[entry.doubt].append(f"{split}: {entry.name}")
            continue
        image, own = entry.found[0], one.notes.get(entry.number, [])
        key = split, image.path.stem
        if key in listed and listed[key].image != image:  # folders tell them apart
            key = split, image.long_stem
        if key in listed and not listed[key].is_same(image, entry.size):
            problems["duplicate name"].append(f"{split}: {image.path}, {len(own)} objects left out")
            continue
        if key in listed:
            problems["listed twice (the objects of both are taken)"].append(f"{split}: {image.path}")
        kept = listed.setdefault(key, Listed(image, entry.size))
        kept.size = kept.size or entry.size
        kept.notes += [] if split == "test" and not one.notes else [(one.categories, own)]
    problems["annotation of an unknown image"] += _of_no_image(one.file, one.notes, times)
    if left:
        kind = "several splits" if one.split else "no split"
        problems[f"list of {kind} (images that other lists name are left to them)"].append(str(one.file.path))
    return own_images


def _of_no_image(file: File, by_image: Mapping[Any, list[dict]], numbers: Collection[Any]) -> list[str]:
    """Name the annotations of other images than those of these numbers."""
    lost = [a for number, found in by_image.items() if number not in numbers for a in found]
    if lost and len(lost) == sum(map(len, by_image.values())):
        raise UserError(f"'{file}': no annotation names one of its images (image_id {lost[0].get('image_id')!r} ...)")
    return [f"{file.path}: annotation {a.get('id')}" for a in lost]


def _objects(
    index: Mapping[str, int],
    rotated: bool,
    notes: list[tuple[dict[int, str], list[dict]]],
    size: tuple[int, int] | None,
) -> Objects:
    rows, problems = [], Counter()
    for categories, annotation in ((known, one) for known, own in notes for one in own):
        number = key_of(annotation.get("category_id"))
        name = categories.get(number)
        outline = _outline(annotation)
        corners = _box(annotation) if outline is None else outline
        if annotation.get("iscrowd"):
            problems["crowd"] += 1
        elif name not in index:
            problems[f"unknown class '{number if name is None else name}'"] += 1
        elif isinstance(corners, str):
            problems[corners] += 1
        else:
            rows.append((index[name], corners, False))
            if rotated and outline is None:
                problems["no outline of corners (its upright box is taken)"] += 1
    return Objects.of(rows, problems, size)


def _outline(annotation: Mapping[str, Any]) -> np.ndarray | None:
    """The corners of the rectangle around the object's polygons, None without such."""
    points = annotation.get("segmentation")
    return None if points is None else smallest_rectangle(points)


def _box(annotation: Mapping[str, Any]) -> np.ndarray | str:
    """The corners of the object's upright box, or why it has none."""
    try:
        x, y, w, h = map(float, annotation["bbox"])
    except (KeyError, OverflowError, TypeError, ValueError):
        return "box without numbers"
    if not all(map(math.isfinite, (x, y, w, h, x + w, y + h))):
        return "box without numbers"
    return upright(x, y, x + w, y + h) if w > 0 and h > 0 else "box of no area"


def smallest_rectangle(points: np.ndarray) -> np.ndarray | None:
    """Return the corners ``(4, 2)`` of the rectangle of least area around points ``(n, 2)``, None if they are in line.

    They go clockwise (y points down), from the one with the smallest x + y on.
    """
    rectangle = shapely.MultiPoint(points).minimum_rotated_rectangle
    if rectangle.geom_type != "Polygon":
        return None
    corners = shapely.get_coordinates(rectangle)[:4]
    edge, other = corners[1] - corners[0], corners[2] - corners[1]
    if edge[0] * other[1] < edge[1] * other[0]:
        corners = corners[::-1]
    return np.roll(corners, -int(corners.sum(1).argmin()), axis=0)
