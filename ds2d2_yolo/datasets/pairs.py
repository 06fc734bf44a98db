"""Images and annotations of one name, in formats of a text file an image: which belong together, and how they go on."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

from ds2d2_yolo.datasets.objects import Job, Objects, Plan
from ds2d2_yolo.datasets.source import File
from ds2d2_yolo.datasets.splits import split_of_folders

_VERSION = re.compile(r"v\d")
Place = tuple[str, ...]


@dataclass
class Pairs:
    """The images of a split with their annotations.

    Attributes:
        notes: Annotation by image, None where there is none.
        doubles: Images passed over for another one of their name and place.
        others: Annotations passed over for another one of their image.
        lonely: Annotations without an image.
    """

    notes: dict[File, File | None] = field(default_factory=dict)
    doubles: list[File] = field(default_factory=list)
    others: list[File] = field(default_factory=list)
    lonely: list[File] = field(default_factory=list)


def add_jobs(
    result: Plan,
    split: str,
    images: list[File],
    notes: list[File],
    read: Callable[[File], Objects],
    taken: str = "the first is taken",
    doubts: Callable[[File, bool], Any] = lambda note, elsewhere: elsewhere,
) -> None:
    """Add the images of a split to a plan: those with an annotation, and all of a test split that has none.

    Of images of one name the first keeps it; others are named by their folders as well.

    Args:
        result: The plan.
        split: Its name.
        images: Its images.
        notes: Its annotations.
        read: Reads an annotation.
        taken: Which of two annotations ``doubts`` choose, in words.
        doubts: See ``paired``.
    """
    pairs, names = paired(images, notes, doubts), {}
    times = Counter(file.path.stem for file in [*images, *pairs.lonely])

    def said(file: File) -> str:
        return f"{split}/{file.path.stem}" if times[file.path.stem] == 1 else str(file)

    twice = "two images of one name (the first is taken)"
    result.problems[f"two annotations of one name ({taken})"] += map(str, pairs.others)
    result.problems[twice] += map(str, pairs.doubles)
    for image, note in pairs.notes.items():
        if note is None and (split != "test" or notes):
            result.problems["image without annotation (left out)"].append(said(image))
            continue
        stem = image.path.stem
        forms = (stem, image.long_stem, "_".join([*image.folders, stem]))
        name = next((form for form in forms if names.setdefault(form, image) is image), None)
        if name is None:
            result.problems[twice] += [str(file) for file in (image, note) if file]
        else:
            result.jobs.append(Job(split, image, note and partial(read, note), name))
    result.problems["annotation without image"] += sorted(map(said, pairs.lonely))


def paired(images: Iterable[File], notes: Iterable[File], doubts: Callable[[File, bool], Any]) -> Pairs:
    """Pair by name, and by place where folders of one name lie above images and above annotations.

    An annotation of another place than any image of its name has belongs to the only one that does not contradict it:
    one of the two lies in folders that the other lies in as well. Of several such images it belongs to the only one
    that has no other annotation. Without any see ``_lend``.

    Args:
        images: The images; of two in one place the first counts.
        notes: The annotations.
        doubts: What speaks against one of several annotations, the least is taken: of the annotation, and whether it
            lies in another place than the image.
    """
    images, notes = list(images), list(notes)
    place, result, found = _places(images, notes), Pairs(), {}
    for image in images:
        if found.setdefault((image.path.stem, place(image)), image) is not image:
            result.doubles.append(image)
    own, free = defaultdict(list), []
    for note in notes:
        image = found.get((note.path.stem, place(note)))
        if image:
            own[image].append((note, False))
        else:
            free.append(note)
    unsure, rest, near = [], defaultdict(list), _Near(found, {note.path.stem for note in free})
    for note in free:
        could = near(note.path.stem, place(note))
        if len(could) == 1:
            own[could[0]].append((note, True))
        elif could:
            unsure.append((note, could))
        else:
            rest[note.path.stem].append(note)
    served = set(own)
    for note, could in unsure:
        left = [image for image in could if image not in served]
        if len(left) == 1:
            own[left[0]].append((note, True))
        else:
            (result.lonely if left else result.others).append(note)
    result.lonely += _lend(rest, near, own, place)
    for image in found.values():
        several = own[image]
        best = min(several, key=lambda one: doubts(*one)) if len(several) > 1 else next(iter(several), None)
        result.notes[image] = best and best[0]
        result.others += [note for note, _ in several if note != best[0]]
    return result


def _lend(
    rest: dict[str, list[File]], near: _Near, own: dict[File, list[tuple[File, bool]]], place: Callable[[File], Place]
) -> list[File]:
    """Give the only image of a name the annotation that is left of it, of one place, and return those not given.

    Folders that both hold images with their annotations lend each other none: what one lacks is not the other's.
    """
    settled = {place(file) for image, notes in own.items() for file in (image, *(note for note, _ in notes))}
    lonely = []
    for stem, notes in rest.items():
        image, places = near.only(stem), {place(note) for note in notes}
        inmost = set(max(places, key=len))
        apart = image and place(image) in settled and not settled.isdisjoint(places)
        # Of several places nobody can tell, but labels/train/a and labels/train_original/a are one
        if image is None or image in own or apart or not all(inmost.issuperset(one) for one in places):
            lonely += notes
        else:
            own[image] = [(note, True) for note in notes]
    return lonely


def _places(images: list[File], notes: list[File]) -> Callable[[File], Place]:
    """What returns a file's place: the folders above it that tell which others it belongs to."""
    lower = {folders: _lower(folders) for folders in {file.folders for file in [*images, *notes]}}
    telling = _telling([{lower[file.folders] for file in files} for files in (images, notes) if files])
    places = {folders: tuple(name for name in above if name in telling) for folders, above in lower.items()}
    return lambda file: places[file.folders]


def _lower(folders: Place) -> Place:
    """In lower case; a zip file and the folder of its name in it are one."""
    return tuple(name for name, _ in groupby(map(str.lower, folders)))


def _telling(sides: list[set[Place]]) -> set[str]:
    """Names of folders above images and above annotations, but above all of them, and of the folders beside these.

    ``images/b`` is none of ``labelTxt/a`` where there is an ``images/a``, while ``part1`` says nothing by itself, nor
    do those that tell a split or a version: DOTA v2.0 has annotations for images of v1.0.
    """
    if not sides:
        return set()
    names = [{name for above in side for name in above} for side in sides]
    both = set.intersection(*names) - set.intersection(*(set(above) for side in sides for above in side))
    beside, telling = defaultdict(set), set(both)
    for number, above in ((number, folders) for number, side in enumerate(sides) for folders in side):
        for depth, name in enumerate(above):
            beside[number, above[:depth]].add(name)
    for group in beside.values():
        if not group.isdisjoint(both):
            group = {name for name in group if not split_of_folders((name,)) and not _VERSION.search(name)}
            telling |= group if not group.isdisjoint(both) else set()
    return telling


class _Near:
    """Images by name, to find those that lie in all folders of a place, or in no others."""

    def __init__(self, found: dict[tuple[str, Place], File], stems: set[str]):
        self._times, entries = Counter(), []
        self._holding, self._rarest = defaultdict(list), defaultdict(list)
        for (stem, place), image in found.items():
            if stem in stems:
                entries.append((stem, set(place), image))
                self._times.update(set(place))
        for entry in entries:
            stem, place, _ = entry
            for name in (None, *place):
                self._holding[stem, name].append(entry)
            self._rarest[stem, self._rare(place)].append(entry)

    def _rare(self, place: set[str]) -> str | None:
        """The folder that fewest images lie in: few are looked through for it."""
        return min(place, key=lambda name: (self._times[name], name), default=None)

    def only(self, stem: str) -> File | None:
        """The only image of a name."""
        entries = self._holding.get((stem, None), ())
        return entries[0][-1] if len(entries) == 1 else None

    def __call__(self, stem: str, place: Place) -> list[File]:
        wanted = set(place)
        inside = (entry for entry in self._holding.get((stem, self._rare(wanted)), ()) if wanted <= entry[1])
        around = (
            entry for name in (None, *wanted) for entry in self._rarest.get((stem, name), ()) if entry[1] < wanted
        )
        return [image for _, _, image in (*inside, *around)]
