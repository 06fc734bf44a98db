"""Data sets in Pascal VOC's layout, or with XML files beside their images as labelling tools leave them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from ds2d2_yolo.datasets.objects import Job, Objects, Plan
from ds2d2_yolo.datasets.source import File, Source
from ds2d2_yolo.datasets.splits import data_yaml, split_of_folders
from ds2d2_yolo.datasets.voc_lists import listed, read_lists
from ds2d2_yolo.datasets.voc_pairs import pair, place_of
from ds2d2_yolo.datasets.voc_xml import read_objects, unnamed
from ds2d2_yolo.errors import UserError


def plan(source: Source, names: list[str] | None = None, boxes: str = "horizontal", origin: int = 0) -> Plan:
    """Plan the conversion of Pascal VOC annotations.

    The splits are those of ``ImageSets/Main`` lists, else those that folders are named by, else those of lists
    elsewhere; without any all is for training. Images that lack an annotation are left out, but for a test split that
    has none at all.

    Args:
        source: The data set's files.
        names: Classes in their order; default: all that the annotations name, sorted.
        boxes: ``horizontal``, or ``rotated`` to take ``robndbox`` where an object has one.
        origin: Coordinate of the first pixel. VOC counts from 1, both ends of a box inside it; most tools from 0.

    Raises:
        UserError: No images or XML files, no class, settings that do not exist.
    """
    if boxes not in ("horizontal", "rotated"):
        raise UserError(f"boxes '{boxes}' do not exist; give horizontal or rotated")
    if origin not in (0, 1):
        raise UserError(f"origin {origin} is not possible; give 0, or 1 where pixels are counted from 1 as VOC does")
    if names is not None and (not names or len(set(names)) < len(names)):
        raise UserError("names of classes are empty or one is there twice; give each class once")
    images = [f for f in source.images if not any(p.lower().startswith("segmentation") for p in f.path.parts[:-1])]
    annotations = [f for f in source.files if f.path.suffix.lower() == ".xml" and not f.path.stem.endswith(".aux")]
    if not images or not annotations:
        what = "images" if annotations else "XML annotations"
        raise UserError(f"source '{source.root}' holds no {what}; give the folder above both images and annotations")
    # Of two images with one name those in JPEGImages are meant
    images.sort(key=lambda f: not any(p.lower().startswith("jpegimages") for p in f.path.parts[:-1]))
    problems = defaultdict(list)
    pairs = pair(images, annotations, problems)
    lists = read_lists(source, images, problems)
    if lists:
        read = f"splits by lists: {', '.join(str(one.file.path) for one in lists[:9])}{', ...' * (len(lists) > 9)}"
        print(read.encode(errors="backslashreplace").decode(), flush=True)  # names of files may be no text
    chosen = listed(lists, images, problems) if lists else _in_folders(images, problems)
    chosen = _by_name(_annotated(chosen, pairs, problems), problems)
    files = list(dict.fromkeys(pairs[image] for image in chosen.values() if image in pairs))
    if names is None:
        names, readers = _read_all(files, boxes == "rotated", origin)
        if chosen and not names:
            raise UserError(f"no annotation of '{source.root}' has an object to tell a class by; give names of classes")
    else:
        problems["class that no annotation names"] += unnamed(names, files)
        index = {name: i for i, name in enumerate(names)}
        readers = {file: partial(_read, file, index, boxes == "rotated", origin) for file in files}
    jobs = [Job(split, image, readers.get(pairs.get(image)), name) for (split, name), image in chosen.items()]
    problems = {k: found for k, found in problems.items() if found}
    return Plan("voc", list(names), jobs, data_yaml(jobs), problems, {"origin": origin} if origin else {})


def _in_folders(images: list[File], problems: dict) -> list[tuple[str, File]]:
    """Split and image, as folders say; all for training where none does."""
    splits = [(split_of_folders(image.folders), image) for image in images]
    if not any(split for split, _ in splits):
        return [("train", image) for image in images]
    problems["in no split's folder"] += [str(image.path) for split, image in splits if not split]
    return [(split, image) for split, image in splits if split]


def _annotated(chosen: list[tuple[str, File]], pairs: Mapping, problems: dict) -> list[tuple[str, File]]:
    """Those with an annotation, and all of a test split that has none."""
    blind = not any(split == "test" and image in pairs for split, image in chosen)
    kept = [(split, image) for split, image in chosen if image in pairs or (split == "test" and blind)]
    without = dict.fromkeys(chosen)
    for one in kept:
        del without[one]
    problems["image without annotation"] += [str(image.path) for _, image in without]
    return kept


def _by_name(chosen: list[tuple[str, File]], problems: dict) -> dict[tuple[str, str], File]:
    """Image by split and name; a second one of a name goes by its folders, or is left out where it lies in the same."""
    found = {}
    for split, image in chosen:
        first = found.setdefault((split, image.path.stem), image)
        if first is not image and place_of(first) != place_of(image):
            first = found.setdefault((split, image.long_stem), image)
        if first is not image:
            problems["duplicate name"].append(f"{split}: {image.path}")
    return found


def _read(file: File, index: Mapping[str, int], rotated: bool, origin: int) -> Objects:
    try:
        text = file.read()
    except OSError as error:
        raise ValueError("annotation that cannot be read") from error
    return read_objects(text, index, rotated, origin)


class _Growing(dict):
    """Class index by name that takes in every name it is asked for."""

    def __contains__(self, name):
        return bool(name)

    def __missing__(self, name):
        return self.setdefault(name, len(self))


def _read_all(files: list[File], rotated: bool, origin: int) -> tuple[list[str], dict[File, Callable[[], Objects]]]:
    """Class names, sorted, and what returns the objects of each file, which is read here and not again."""
    index, found = _Growing(), {}
    for file in files:
        try:
            found[file] = _read(file, index, rotated, origin)
        except ValueError as error:
            found[file] = error
    names = sorted(index)
    place = {name: i for i, name in enumerate(names)}
    order = np.array([place[name] for name in index], np.int64)
    return names, {file: partial(_kept, what, order) for file, what in found.items()}


def _kept(what: Objects | ValueError, order: np.ndarray) -> Objects:
    if isinstance(what, ValueError):
        raise ValueError(*what.args)
    classes = order[what.classes] if len(what) else what.classes
    return replace(what, classes=classes, problems=dict(what.problems))
