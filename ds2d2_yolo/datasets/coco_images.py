"""The images that COCO's JSON files name, wherever they lie."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ds2d2_yolo.datasets.source import File, path_of
from ds2d2_yolo.datasets.splits import possible_splits, split_of_folders


class Images:
    """The images of a source by their names."""

    def __init__(self, images: Iterable[File]):
        self._by_name, self._splits = defaultdict(list), set()
        for image in images:
            self._by_name[image.path.name].append(image)
            self._splits |= possible_splits(image.folders)

    def doubt(self, name: str, found: list[File]) -> str:
        """Return why the images found of that name are not one."""
        if found:
            return "more than one image of this name"
        return "in another split's folder alone" if parts(name)[-1] in self._by_name else "listed but missing"

    def find(self, name: str, file: File, split: str | None) -> list[File]:
        """Return the images of that name, but those in the folder of another split than is meant.

        Of several: those that share most folders with it, of these in the split's folder (in one of any split, where
        none is meant), near the file. A zip file's name counts as a folder and as none, as fits better.

        Args:
            name: ``file_name`` of an image; its folders need not be there.
            file: The JSON file that names it.
            split: That of the file, if it has one.
        """
        wanted = parts(name)
        meant = possible_splits(wanted[:-1])
        if not meant:
            # Of a data set whose val.json lists images of the folder train there is no folder val
            meant = possible_splits(file.folders, file.path.name)
            meant = meant if meant & self._splits else set()
        found = [image for image in self._by_name.get(wanted[-1], []) if not _apart(image, meant)]
        if len(found) < 2:
            return found

        def fit(image: File) -> tuple[int, bool, int]:
            forms, own = (image.path.parts, (*image.folders, image.path.name)), split_of_folders(image.folders)
            tail = max(shared(wanted[::-1], form[::-1]) for form in forms)
            near = max(map(shared, forms, (file.path.parts, file.folders)))
            return tail, own == split if split else own is not None, near

        return fittest(found, fit)


def parts(name: str) -> tuple[str, ...]:
    """Return the folders and the name in a ``file_name``, or a line of a list."""
    return path_of(name.replace("\\", "/")).parts


def beginning(names: Iterable[str]) -> int:
    """Return how many parts of whole paths all names share, which say where a data set once lay; 0 of other names."""
    every = [parts(name) for name in names]
    whole = every and (every[0][0].startswith("/") or every[0][0].endswith(":"))
    return shared(min(every), max(every)) if whole else 0


def split_of_image(folders: Sequence[str], found: Sequence[File]) -> str:
    """Return the split that the folders of an image's name say, else those of the one image found, else train."""
    own = found[0].folders if len(found) == 1 else ()
    return split_of_folders(folders) or split_of_folders(own) or "train"


def _apart(image: File, meant: set[str]) -> bool:
    """Whether it lies in a split's folder, and not in one of those."""
    own = possible_splits(image.folders)
    return bool(own and meant) and own.isdisjoint(meant)


def fittest(images: Sequence[File], fit: Callable[[File], Any]) -> list[File]:
    """Return the images of the highest value."""
    fits = [fit(image) for image in images]
    return [image for image, value in zip(images, fits, strict=True) if value == max(fits)]


def shared(one: Sequence[str], other: Sequence[str]) -> int:
    """Return how many parts are the same from the beginning on."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@dataclass
class Listed:
    """An image, its size as listed, and categories and annotations of each file that annotates it."""

    image: File
    size: tuple[int, int] | None
    notes: list[tuple[dict[int, str], list[dict]]] = field(default_factory=list)

    def is_same(self, image: File, size: tuple[int, int] | None) -> bool:
        return self.image == image and (self.size or size) == (size or self.size)


def size_of(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return width and height in an image's entry, None if they are no such numbers."""
    size = entry.get("width"), entry.get("height")
    return size if all(isinstance(v, int) and v > 0 for v in size) else None
