"""Data sets in Pascal VOC's layout, or with XML files beside their images as labelling tools leave them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import PurePosixPath

import numpy as np

from ds2d2_yolo.datasets.coco_images import fittest, parts, shared
from ds2d2_yolo.datasets.objects import Job, Objects, Plan
from ds2d2_yolo.datasets.source import IMAGES, UNREAD, File, Source
from ds2d2_yolo.datasets.splits import data_yaml, possible_splits, split_of_folders, without_column
from ds2d2_yolo.datasets.voc_xml import read_objects, unnamed
from ds2d2_yolo.errors import UserError

# Folders that name a kind of file and no place: Annotations/a/1.xml belongs to JPEGImages/a/1.jpg
_KIND = re.compile(r"annotations?|jpegimages.*|images?|imgs?|labels?|xmls?")
_LISTS = ("train", "val", "trainval", "test")


def plan(source: Source, names: list[str] | None = None, boxes: str = "horizontal", origin: int = 0) -> Plan:
    """Plan the conversion of Pascal VOC annotations.

    The splits are those of ``ImageSets/Main``; without lists those that folders are named by, and without such folders
    all is for training. Images that lack an annotation are left out, but for a test split that has none at all.

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
    pairs = _pairs(images, annotations, problems)
    lists = _lists(source, {image.path.stem for image in images})
    chosen = _listed(lists, images, problems) if lists else _in_folders(images, problems)
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


def _pairs(images: list[File], annotations: list[File], problems: dict) -> dict[File, File]:
    """Annotation by image: of the same name in the same place, else the only two of that name."""
    by_place = defaultdict(list)
    for file in annotations:
        by_place[_place(file), file.path.stem].append(file)
    pairs = _in_places(images, by_place)
    used = set(pairs.values())
    for found in by_place.values():
        taken = [file for file in found if file in used]
        more = [file for file in found if file not in used and not all(_apart(file, one) for one in taken)]
        used.update(more)
        problems["second annotation of an image"] += [str(f.path) for f in more]
    rest, lonely = defaultdict(list), defaultdict(list)
    for file in annotations:
        if file not in used:
            rest[file.path.stem].append(file)
    for image in images:
        if image not in pairs:
            lonely[image.path.stem].append(image)
    for stem, found in lonely.items():
        notes = rest.get(stem, [])
        if len(found) == len(notes) == 1 and not _apart(found[0], notes[0]):
            pairs[found[0]] = notes[0]
            used.add(notes[0])
        elif len(notes) > 1 or (notes and len(found) > 1):
            used.update(notes)
            problems["annotations and images of one name, and no folders that pair them"] += [
                str(f.path) for f in notes
            ]
    problems["annotation without image"] += [str(f.path) for f in annotations if f not in used]
    return pairs


def _in_places(images: list[File], by_place: Mapping[tuple, list[File]]) -> dict[File, File]:
    """Annotation by image: of its place, not of another split (zip files tell it, too), nor wanted by two splits."""
    pairs, wanted = {}, defaultdict(set)
    for image in images:
        notes = by_place.get((_place(image), image.path.stem), ())
        if found := [note for note in notes if not _apart(image, note)]:
            split = split_of_folders(image.folders)
            pairs[image] = min(found, key=lambda note: split_of_folders(note.folders) != split)
            wanted[pairs[image]].add(split)
    return {image: note for image, note in pairs.items() if len(wanted[note] - {None}) < 2}


def _place(file: File) -> tuple[str, ...]:
    return tuple(part for part in map(str.lower, file.path.parts[:-1]) if not _KIND.fullmatch(part))


def _apart(one: File, other: File) -> bool:
    """Whether both lie in splits' folders, and not in the same."""
    splits = {split_of_folders(f.folders) for f in (one, other)} - {None}
    return len(splits) > 1


def _lists(source: Source, stems: Collection[str]) -> dict[PurePosixPath, dict[str, list[tuple[str, ...]]]]:
    """Lines by kind of list, for each folder that has ``ImageSets/Main`` (or lists in ``ImageSets`` itself)."""
    found = defaultdict(dict)
    for depth, folders in ((2, ["imagesets", "main"]), (1, ["imagesets"])):
        for file in source.files:
            path = file.path
            above = [part.lower() for part in path.parts[:-1]][-depth:]
            if path.suffix.lower() == ".txt" and path.stem.lower() in _LISTS and above == folders:
                found[path.parents[depth]].setdefault(path.stem.lower(), []).extend(_lines(file, stems))
        if found:
            break
    return dict(found)


def _lines(file: File, stems: Collection[str]) -> list[tuple[str, ...]]:
    """The folders and the name without suffix in each line, and without VOC's column but where that is in a stem."""
    try:
        text = file.read().decode("utf-8-sig", "surrogateescape")  # as names of files are decoded
    except OSError as error:
        raise UserError(f"split list '{file}' cannot be read: {error}") from error
    forms = ((_named(line.strip()), _named(without_column(line))) for line in text.splitlines())
    return [whole if whole[-1] in stems else bare for whole, bare in forms if whole]


def _named(line: str) -> tuple[str, ...]:
    *folders, name = parts(line) or ("",)
    path = PurePosixPath(name)
    name = path.stem if path.suffix.lower() in {*IMAGES, *UNREAD, ".xml"} else name
    return (*folders, name) if name else ()


def _listed(lists: Mapping, images: list[File], problems: dict) -> list[tuple[str, File]]:
    """Split and image, as the lists say."""
    by_stem = defaultdict(list)
    for image in images:
        by_stem[image.path.stem].append(image)
    chosen = {}
    for root, kinds in lists.items():
        meant = {
            k: [one for line in lines for one in _meant(line, k, root, lists, by_stem)] for k, lines in kinds.items()
        }
        for split, ones in _three(meant).items():
            for one in ones:
                if isinstance(one, File):
                    chosen[split, one] = None
                else:
                    problems[one[0]].append(f"{split}: {one[1]}")
    times = Counter(image for _, image in chosen)
    problems["in two split lists"] += [str(image.path) for image, count in times.items() if count > 1]
    problems["in no split list"] += [str(image.path) for image in images if image not in times]
    return list(chosen)


def _meant(line: tuple, kind: str, root: PurePosixPath, lists: Iterable[PurePosixPath], by_stem: Mapping) -> list:
    """The images that a line means, those of its name that share most folders with it; else why there is none, and it.

    Of others those in folders named for images, of these in folders of the list's splits. Folders need not be there
    where they leave no doubt.
    """
    same = by_stem.get(line[-1], ())
    # Lists may have been unpacked beside their images, not above them
    free = (i for i in same if not any(other in i.path.parents for other in lists))
    near = [i for i in same if root in i.path.parents] or list(free)
    if not near:
        return [("listed but missing", "/".join(line))]

    def fit(image: File) -> tuple[int, bool, bool]:
        *folders, _ = image.path.parts
        tail = max(shared(line[::-1], (image.path.stem, *above[::-1])) for above in (folders, image.folders))
        own = split_of_folders(image.folders) in possible_splits([kind])
        return tail, any(_KIND.fullmatch(f.lower()) for f in folders), own

    found = fittest(near, fit)
    if len(line) > 1 and fit(found[0])[0] == 1 and len({image.path.parent for image in found}) > 1:
        return [("more than one image of this name", "/".join(line))]
    return found


def _three(kinds: Mapping[str, list]) -> dict[str, list]:
    """Lists of train, val and test; of trainval comes what one of the two lacks."""
    train, val, both = kinds.get("train"), kinds.get("val"), kinds.get("trainval", [])
    if train is None:
        seen = set(val or ())
        train = [one for one in both if one not in seen]
    elif val is None:
        seen = set(train)
        val = [one for one in both if one not in seen]
    return {"train": train, "val": val or [], "test": kinds.get("test", [])}


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
    for pair in kept:
        del without[pair]
    problems["image without annotation"] += [str(image.path) for _, image in without]
    return kept


def _by_name(chosen: list[tuple[str, File]], problems: dict) -> dict[tuple[str, str], File]:
    """Image by split and name; a second one of a name goes by its folders, or is left out where it lies in the same."""
    found = {}
    for split, image in chosen:
        first = found.setdefault((split, image.path.stem), image)
        if first is not image and _place(first) != _place(image):
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
