"""The images that COCO's JSON files name, wherever they lie."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ds2d2_yolo.datasets.source import File, path_of
from ds2d2_yolo.datasets.splits import possible_splits, split_of_folders

MISSING = "listed but missing"


class Tails:
    """Images by the last parts of their paths.

    Args:
        images: The images.
        forms: Returns what counts as an image's path, several where a zip file counts as a folder and as none.
    """

    def __init__(self, images: Iterable[File], forms: Callable[[File], Iterable[tuple[str, ...]]]):
        self._forms, self._by_name, self._deeper = forms, defaultdict(list), {}
        for image in images:
            self._by_name[next(iter(forms(image)))[-1]].append(image)

    def longest_first(self, wanted: tuple[str, ...]) -> Iterator[tuple[int, list[File]]]:
        """Yield how many parts are the same from the name upwards, and the images of which so many are, or more.

        Where a thousand folders each have a 1.jpg, these are not all looked at.
        """
        alike = self._by_name.get(wanted[-1], [])
        if len(alike) == 1:
            yield max(shared(wanted[::-1], form[::-1]) for form in self._forms(alike[0])), alike
        if len(alike) < 2:
            return
        if wanted[-1] not in self._deeper:
            self._deeper[wanted[-1]] = tails = defaultdict(list)
            for image in alike:
                for tail in {form[i:] for form in self._forms(image) for i in range(len(form))}:
                    tails[tail].append(image)
        tails = self._deeper[wanted[-1]]
        for i in range(len(wanted)):
            if wanted[i:] in tails:
                yield len(wanted) - i, tails[wanted[i:]]


class Images:
    """The images of a source by their names; case tells apart only those that are alike but for it."""

    def __init__(self, images: Iterable[File]):
        images, self._known = list(images), {}
        self._tails = Tails(images, lambda image: [_lower(form) for form in _forms(image)])
        self._splits = {split for image in images for split in possible_splits(image.folders)}

    def doubt(self, wanted: tuple[str, ...], found: list[File]) -> str:
        """Return why the images found of that name are not one."""
        if found:
            return "more than one image of this name"
        alike = self._tails.longest_first(_lower(wanted[-1:]))
        return "in another split's folder alone" if next(alike, None) else MISSING

    def find(self, wanted: tuple[str, ...], file: File, split: str | None) -> list[File]:
        """Return the images of that name, but those in the folder of another split than is meant.

        Of several: those that are most like it, of these in the split's folder (in one of any split, where none is
        meant), near the file. A zip file's name counts as a folder and as none, as fits better.

        Args:
            wanted: ``parts`` of an image's ``file_name``; its folders need not be there.
            file: The JSON file that names it.
            split: That of the file, if it has one.
        """
        meant = possible_splits(wanted[:-1])
        if not meant:
            # Of a data set whose val.json lists images of the folder train there is no folder val
            meant = possible_splits(file.folders, file.path.name)
            meant = meant if meant & self._splits else set()
        for number, alike in self._tails.longest_first(_lower(wanted)):
            if len(alike) > 1:  # the same for all names that end so, which may be many
                key = wanted[-number:], file, split, frozenset(meant)
                if key not in self._known:
                    self._known[key] = _fittest([i for i in alike if not _apart(i, meant)], key[0], file, split)
                alike = self._known[key]
            elif _apart(alike[0], meant):
                continue
            if alike:
                return alike
        return []


def _fittest(images: list[File], wanted: tuple[str, ...], file: File, split: str | None) -> list[File]:
    def fit(image: File) -> tuple[int, bool, int]:
        own = split_of_folders(image.folders)
        near = max(map(shared, _forms(image), (file.path.parts, file.folders)))
        return likeness(wanted, image)[1], own == split if split else own is not None, near

    return fittest(images, fit)


def _forms(image: File) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return image.path.parts, (*image.folders, image.path.name)


def _lower(form: tuple[str, ...]) -> tuple[str, ...]:
    return tuple([part.lower() for part in form])


def likeness(wanted: Sequence[str], image: File) -> tuple[int, int, bool]:
    """Return how like an image's path is to a name: see ``agreement``. A zip file counts as a folder or as none."""
    return max(agreement(wanted, form) for form in _forms(image)[: 2 if image.member else 1])


def agreement(wanted: Sequence[str], form: Sequence[str]) -> tuple[int, int, bool]:
    """Return how many parts are the same from the name upwards, how many to the letter, and if no part differs."""
    exact = shared(wanted[::-1], form[::-1])
    whole = exact == min(len(wanted), len(form))
    alike = exact if whole else shared(_lower(wanted[::-1]), _lower(form[::-1]))
    return alike, exact, whole


class Claimant(NamedTuple):
    """Whose an entry is.

    Attributes:
        file: The file; None where all lists are as one.
        split: The split that it is for.
        alone: Whether its name tells that split and no other.
    """

    file: File | None = None
    split: str | None = None
    alone: bool = False


_ALL_AS_ONE = Claimant()


class Claims:
    """How well the names in lists fit the images that they may mean."""

    def __init__(self):
        self._own, self._of_split, self._several = {}, defaultdict(dict), {}

    def add(self, likes: Iterable[tuple[File, tuple[int, int, bool]]], by: Claimant = _ALL_AS_ONE) -> None:
        """Take note of the images that an entry may mean, and of the ``agreement`` of their names."""
        for image, like in likes:
            self._own[by.file, image] = max(self._own.get((by.file, image), (0, 0)), like[:2])
            if by.alone:
                best = self._of_split[image]
                best[by.split] = max(best.get(by.split, (0, 0)), like[:2])

    def add_named(self, wanted: tuple[str, ...], found: list[File], by: Claimant) -> None:
        """Take note of the images that ``Images.find`` returns; several are the same list for all names alike."""
        if id(found) in self._several:
            return
        if len(found) > 1:
            self._several[id(found)] = found  # kept, and with it the id
        self.add(((image, likeness(wanted, image)) for image in found), by)

    def is_anothers(self, image: File, like: tuple[int, int, bool], by: Claimant = _ALL_AS_ONE) -> bool:
        """Whether an entry with another folder than the image's must leave it to one that knows its folder better.

        To one of its own file, or of another split's. Of two files of a split, or with one that names none, both may
        mean the image: old versions and extracts lie beside the real files.
        """
        if like[2]:
            return False
        others = (best for split, best in self._of_split.get(image, {}).items() if split != by.split)
        return like[:2] < max(self._own.get((by.file, image), (0, 0)), *others, (0, 0))


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
    best = max(fits, default=None)
    return [image for image, value in zip(images, fits, strict=True) if value == best]


def shared(one: Sequence[str], other: Sequence[str]) -> int:
    """Return how many parts are the same from the beginning on."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@dataclass(slots=True)
class Entry:
    """An image as a file lists it.

    Attributes:
        number: Its id.
        name: Its ``file_name``.
        parts: Folders and name in that.
        size: Width and height, if they are there.
        found: The images that it may mean.
        doubt: Why these are not one.
    """

    number: int | str
    name: str
    parts: tuple[str, ...]
    size: tuple[int, int] | None
    found: list[File]
    doubt: str = ""


def settle(entries: Sequence[Entry], claims: Claims, images: Images, by: Claimant) -> None:
    """Leave to each entry of a file the images that no other has a better claim to, and say why these are not one."""
    others, rests, known = defaultdict(set), {}, {}  # of an image and of an entry: the first folders that differ
    for i, entry in enumerate(entries):
        wanted, found = entry.parts, entry.found
        like = likeness(wanted, found[0]) if found else (0, 0, False)
        key = id(found), like[0] < len(wanted)
        if len(found) < 2:
            lost = bool(found) and claims.is_anothers(found[0], like, by)
        else:
            if key not in known:  # which keeps the list, and with it the id
                known[key] = found, all(claims.is_anothers(image, likeness(wanted, image), by) for image in found)
            lost = known[key][1]
        if lost:
            entry.found, entry.doubt = [], MISSING
        elif len(found) != 1:
            entry.doubt = images.doubt(wanted, found)
        elif key[1]:
            rests[i] = wanted[-like[0] - 1].lower()
            others[found[0]].add(rests[i])
    for i in rests:
        if len(others[entries[i].found[0]]) > 1:
            entries[i].found, entries[i].doubt = [], "one image for entries of several folders"


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
