"""The images that COCO's JSON files name, wherever they lie."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from ds2d2_yolo.datasets.source import File
from ds2d2_yolo.datasets.splits import possible_splits, split_of_folders


class Images:
    """The images of a source by their names."""

    def __init__(self, images: Iterable[File]):
        self._by_name, self._splits = defaultdict(list), set()
        for image in images:
            self._by_name[image.path.name].append(image)
            self._splits |= possible_splits(image.path.parts[:-1])

    def elsewhere(self, name: str) -> bool:
        """Whether there is an image of that name at all, in whatever split's folder."""
        return parts(name)[-1] in self._by_name

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
            tail = _shared(wanted[::-1], own[::-1])
            return tail, split_of_folders(own[:-1]) == split, _shared(own, file.path.parts)

        fits = [fit(image) for image in found]
        return [image for image, value in zip(found, fits, strict=True) if value == max(fits)]


def parts(name: str) -> tuple[str, ...]:
    """Return the folders and the name in a ``file_name``."""
    return PurePosixPath(name.replace("\\", "/")).parts


def _apart(image: File, meant: set[str]) -> bool:
    """Whether it lies in a split's folder, and not in one of those."""
    own = possible_splits(image.path.parts[:-1])
    return bool(own and meant) and own.isdisjoint(meant)


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    """How many parts are the same from the beginning on."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
