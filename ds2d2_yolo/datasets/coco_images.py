"""The images that COCO's JSON files name, wherever they lie."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ds2d2_yolo.datasets.source import File, path_of
from ds2d2_yolo.datasets.splits import possible_splits, split_of_folders


class Images:
    """The images of a source by their names."""

    def __init__(self, images: Iterable[File]):
        self._by_name, self._splits = defaultdict(list), set()
        for image in images:
            self._by_name[image.path.name].append(image)
            self._splits |= possible_splits(image.path.parts[:-1])

    def doubt(self, name: str, found: list[File]) -> str:
        """Return why the images found of that name are not one."""
        if found:
            return "more than one image of this name"
        return "in another split's folder alone" if parts(name)[-1] in self._by_name else "listed but missing"

    def find(self, name: str, file: File, split: str) -> list[File]:
        """Return the images of that name, but those in the folder of another split than is meant.

        Of several: those that share most folders with it, of these in the split's folder, near the file.

        Args:
            name: ``file_name`` of an image; its folders need not be there.
            file: The JSON file that names it.
            split: That of the file.
        """
        wanted = parts(name)
        meant = possible_splits(wanted[:-1])
        if not meant:
            # Of a data set whose val.json lists images of the folder train there is no folder val
            meant = possible_splits(file.path.parts[:-1], file.path.name)
            meant = meant if meant & self._splits else set()
        found = [image for image in self._by_name.get(wanted[-1], []) if not _apart(image, meant)]
        if len(found) < 2:
            return found

        def fit(image: File) -> tuple[int, bool, int]:
            own = image.path.parts
            tail = shared(wanted[::-1], own[::-1])
            return tail, split_of_folders(own[:-1]) == split, shared(own, file.path.parts)

        return fittest(found, fit)


def parts(name: str) -> tuple[str, ...]:
    """Return the folders and the name in a ``file_name``, or a line of a list."""
    return path_of(name.replace("\\", "/")).parts


def _apart(image: File, meant: set[str]) -> bool:
    """Whether it lies in a split's folder, and not in one of those."""
    own = possible_splits(image.path.parts[:-1])
    return bool(own and meant) and own.isdisjoint(meant)


def fittest(images: Sequence[File], fit: Callable[[File], Any]) -> list[File]:
    """Return the images of the highest value."""
    fits = [fit(image) for image in images]
    return [image for image, value in zip(images, fits, strict=True) if value == max(fits)]


def shared(one: Sequence[str], other: Sequence[str]) -> int:
    """Return how many parts are the same from the beginning on."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
