"""One of COCO's JSON files, read and looked through."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from ds2d2_yolo.datasets.coco_images import Claimant, Claims, Entry, Images, parts, size_of
from ds2d2_yolo.datasets.source import File
from ds2d2_yolo.datasets.splits import possible_splits, split_of_list
from ds2d2_yolo.errors import UserError

_NUMBERS = {"id", "image_id", "category_id", "iscrowd"}


@dataclass
class Listing:
    """What is kept of a file.

    Attributes:
        file: The file.
        split: The split that it is for, as far as its name and the lists before it tell.
        entries: Its images.
        notes: Its annotations by their image's id.
        categories: Names by id, ids ascending; None of a list without annotations.
    """

    file: File
    split: str | None
    entries: list[Entry]
    notes: dict[Any, list[dict]]
    categories: dict[int, str] | None

    @property
    def counts(self) -> bool:
        """Whether its images are taken: of those without annotations a test split's alone."""
        return self.categories is not None or self.split == "test"

    @property
    def claimant(self) -> Claimant:
        """Whose its entries are."""
        return Claimant(self.file, self.split, len(possible_splits(self.file.folders, self.file.path.name)) == 1)


def read(file: File, rotated: bool, images: Images, claims: Claims, others: Collection[str]) -> Listing:
    """Read a file, and note which images its entries may mean.

    Args:
        file: The file.
        rotated: Keep the objects' outlines.
        images: Those of the source.
        claims: Takes in which images the entries name, and how well, of a file whose images are taken.
        others: Splits that other files are for.

    Raises:
        UserError: It is broken or something else.
    """
    content, split = _load(file, rotated), split_of_list(file.folders, file.path.name, others)
    notes = defaultdict(list)
    for annotation in content.get("annotations", ()):
        notes[key_of(annotation.get("image_id"))].append(annotation)
    categories = _categories(content["categories"], file) if "annotations" in content else None
    listing = Listing(file, split, [], dict(notes), categories)
    counts, claimant = listing.counts, listing.claimant
    for image in content["images"]:
        name = image["file_name"]
        wanted = parts(name)
        found = images.find(wanted, file, split)
        listing.entries.append(Entry(image["id"], name, wanted, size_of(image), found))
        if counts:
            claims.add_named(wanted, found, claimant)
    return listing


def key_of(value: Any) -> Any:
    """Return an id as it is looked up; None for what is none."""
    return value if isinstance(value, int | str) else None


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
    """Name by id, ids ascending; spaces around a name are none of it, as ``names=`` cannot have them."""
    found = {}
    for entry in entries:
        number, name = entry.get("id"), entry.get("name")
        if not isinstance(number, int) or not isinstance(name, str):
            raise UserError(f"'{file}' has a category without number or name: {str(entry)[:80]}")
        name = name.strip()
        if found.setdefault(number, name) != name:
            raise UserError(f"'{file}' has two categories with the id {number}: '{found[number]}' and '{name}'")
    return dict(sorted(found.items()))
