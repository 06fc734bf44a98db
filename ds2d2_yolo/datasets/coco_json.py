"""Data sets annotated in COCO's detection JSON, one file a split."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import shapely

from ds2d2_yolo.datasets.coco_images import Images, Listed, beginning, parts, size_of, split_of_image
from ds2d2_yolo.datasets.objects import Job, Objects, Plan, upright
from ds2d2_yolo.datasets.source import File, Source
from ds2d2_yolo.datasets.splits import data_yaml, possible_splits, split_of_list
from ds2d2_yolo.errors import UserError

_NUMBERS = {"id", "image_id", "category_id", "iscrowd"}
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
    rotated, images, problems = boxes == "rotated", Images(f for f in source.files if f.is_image), defaultdict(list)
    listed, known, index, named = {}, {}, {}, {}
    for number in (1, 2, 0):  # lists of one split, of several, of none
        taken = dict(named)  # by those before
        for file in (f for f in files if number == min(len(possible_splits(f.folders, f.path.name)), 2)):
            content = _load(file, rotated)
            if "annotations" in content:
                known[file] = _categories(content["categories"], file)
            named |= _add(listed, file, content, known.get(file, {}), images, problems, taken)
            del content  # before the next is read: they can be large
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


def _load(file: File, outlines: bool) -> dict[str, Any]:
    """Return a file's content, ``segmentation`` left out, or made points ``(n, 2)`` (None where it is no polygon)."""

    def slim(entry: dict) -> dict:
        for key in _NUMBERS & entry.keys():
            entry[key] = _number(entry[key])
        outline = entry.pop("segmentation", None)
        if outlines and outline:
            entry["segmentation"] = _points(outline)
        return entry

    try:
        text = file.read()
        text = text.decode(json.detect_encoding(text), "surrogatepass")  # one copy at a time: files can be large
        content = json.loads(text, object_hook=slim)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"'{file}' is no whole JSON file: {error}") from error
    lists = {"images"} if isinstance(content, dict) and "annotations" not in content else {"images", "annotations"}
    if not isinstance(content, dict) or not all(_entries(content.get(key)) for key in lists):
        raise UserError(
            f"'{file}' is no COCO detection file (a list of images, one of annotations); if it is none, move it away"
        )
    for entry in content["images"]:
        if not isinstance(entry.get("id"), int | str) or not _is_name(entry.get("file_name")):
            raise UserError(f"'{file}' has an image without id or file_name: {str(entry)[:80]}")
    if "annotations" in content and not _entries(content.get("categories")):
        raise UserError(f"'{file}' has annotations and no list of categories")
    return content


def _number(value: Any) -> Any:
    """An id or a flag as a number, which some write as 1.0 or "1"; others stay as they are."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return int(value) if isinstance(value, str) and value.isdecimal() and str(int(value)) == value else value


def _entries(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(parts(value))


def _points(segmentation: Any) -> np.ndarray | None:
    """The corners of all polygons of an object."""
    if not isinstance(segmentation, list):
        return None  # run lengths
    polygons = segmentation if isinstance(segmentation[0], list) else [segmentation]
    try:
        points = np.concatenate([np.array(p, np.float64).reshape(-1, 2) for p in polygons if len(p) >= 6])
    except (TypeError, ValueError):
        return None
    return points if np.isfinite(points).all() else None


def _categories(entries: list[dict], file: File) -> dict[int, str]:
    """Name by id, ids ascending."""
    found = {}
    for entry in entries:
        number, name = entry.get("id"), entry.get("name")
        if not isinstance(number, int) or not isinstance(name, str):
            raise UserError(f"'{file}' has a category without number or name: {str(entry)[:80]}")
        if found.setdefault(number, name) != name:
            raise UserError(f"'{file}' has two categories with the id {number}: '{found[number]}' and '{name}'")
    return dict(sorted(found.items()))


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
    file: File,
    content: Mapping[str, list[dict]],
    categories: dict[int, str],
    images: Images,
    problems: dict[str, list[str]],
    taken: Mapping[File | str, str],
) -> dict[File | str, str]:
    """Add the images of a file that are there and not taken; return its split by image, by name where none is found."""
    meant, own_images = split_of_list(file.folders, file.path.name, set(taken.values())), {}
    if "annotations" not in content and meant != "test":
        return own_images
    by_image = defaultdict(list)
    for annotation in content.get("annotations", ()):
        by_image[_key(annotation.get("image_id"))].append(annotation)
    times, left = Counter(entry["id"] for entry in content["images"]), False
    elsewhere = beginning(entry["file_name"] for entry in content["images"])
    for entry in content["images"]:
        number, name = entry["id"], entry["file_name"]
        if times[number] > 1:  # whose the annotations are cannot be told
            problems["duplicate image id"].append(f"{file.path}: {name}")
            continue
        found = images.find(name, file, meant)
        what = found[0] if len(found) == 1 else name
        own_images[what] = split = meant or split_of_image(parts(name)[elsewhere:-1], found)
        if what in taken or (found and taken.keys() >= set(found)):
            left = True
            continue
        if len(found) != 1:
            problems[images.doubt(name, found)].append(f"{split}: {name}")
            continue
        image, size, own = found[0], size_of(entry), by_image.get(number, [])
        key = split, image.path.stem
        if key in listed and listed[key].image != image:  # folders tell them apart
            key = split, image.long_stem
        if key in listed and not listed[key].is_same(image, size):
            problems["duplicate name"].append(f"{split}: {image.path}, {len(own)} objects left out")
            continue
        if key in listed:
            problems["listed twice (the objects of both are taken)"].append(f"{split}: {image.path}")
        one = listed.setdefault(key, Listed(image, size))
        one.size = one.size or size
        one.notes += [] if split == "test" and not content.get("annotations") else [(categories, own)]
    problems["annotation of an unknown image"] += _of_no_image(file, by_image, times)
    if left:
        kind = "several splits" if meant else "no split"
        problems[f"list of {kind} (images that other lists name are left to them)"].append(str(file.path))
    return own_images


def _of_no_image(file: File, by_image: Mapping[Any, list[dict]], numbers: Collection[Any]) -> list[str]:
    """Name the annotations of other images than those of these numbers."""
    lost = [a for number, found in by_image.items() if number not in numbers for a in found]
    if lost and len(lost) == sum(map(len, by_image.values())):
        raise UserError(f"'{file}': no annotation names one of its images (image_id {lost[0].get('image_id')!r} ...)")
    return [f"{file.path}: annotation {a.get('id')}" for a in lost]


def _key(value: Any) -> Any:
    return value if isinstance(value, int | str) else None


def _objects(
    index: Mapping[str, int],
    rotated: bool,
    notes: list[tuple[dict[int, str], list[dict]]],
    size: tuple[int, int] | None,
) -> Objects:
    rows, problems = [], Counter()
    for categories, annotation in ((known, one) for known, own in notes for one in own):
        number = _key(annotation.get("category_id"))
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
