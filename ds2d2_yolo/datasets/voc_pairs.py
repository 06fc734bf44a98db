"""Which annotation is which image's, in Pascal VOC's layout and others."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from functools import lru_cache, partial

from ds2d2_yolo.datasets.source import File
from ds2d2_yolo.datasets.splits import split_of_folders

# Folders that name a kind of file and no place: Annotations/a/1.xml belongs to JPEGImages/a/1.jpg
KIND = re.compile(r"annotations?|jpegimages.*|images?|imgs?|labels?|xmls?")


@lru_cache(4096)
def place(folders: tuple[str, ...]) -> tuple[str, ...]:
    """Return the folders that name a place; case does not matter."""
    return tuple(part for part in map(str.lower, folders) if not KIND.fullmatch(part))


def place_of(file: File) -> tuple[str, ...]:
    """Return a file's place, whatever zip file it is in."""
    return place(file.path.parts[:-1])


def home_of(file: File) -> tuple[str, ...]:
    """Return a file's place, its zip file a part of it."""
    return place(file.folders)


def pair(images: list[File], annotations: list[File], problems: dict[str, list[str]]) -> dict[File, File]:
    """Return annotation by image: of the same name in the same place, else the only two of that name.

    Not so where both their places have images with annotations of their own: then each lacks the other. Annotations
    that are left over are named as problems.
    """
    by_place, by_stem, rest = defaultdict(list), defaultdict(list), defaultdict(list)
    for file in annotations:
        by_place[place_of(file), file.path.stem].append(file)
    for image in images:
        by_stem[image.path.stem].append(image)
    pairs, settled = _in_places(images, by_place)
    used, apart = set(pairs.values()), partial(_apart, settled)
    for found in by_place.values():
        taken = [file for file in found if file in used]
        more = [file for file in found if file not in used and not all(apart(file, one) for one in taken)]
        used.update(more)
        problems["second annotation of an image"] += [str(f.path) for f in more]
    for file in annotations:
        if file not in used:
            rest[file.path.stem].append(file)
    for stem, notes in rest.items():
        same = by_stem[stem]
        lonely = [image for image in same if image not in pairs]
        if len(lonely) == len(same) == len(notes) == 1 and not apart(lonely[0], notes[0]):
            pairs[lonely[0]] = notes[0]
            used.add(notes[0])
        elif reason := _doubt(same, lonely, notes, settled):
            named = notes if lonely else [note for note in notes if not apart(same[0], note)]
            used.update(named)
            problems[reason] += [str(f.path) for f in named]
    problems["annotation without image"] += [str(f.path) for f in annotations if f not in used]
    return pairs


def _doubt(images: list[File], lonely: list[File], notes: list[File], settled: Collection[tuple]) -> str:
    """Why annotations of one name are left over though there are images of it, of which some lack one; else nothing."""
    if not lonely:  # whose second one it is can be told of one image alone
        return "second annotation of an image" if len(set(map(place_of, images))) == 1 else ""
    ours, theirs = set(map(home_of, lonely)), set(map(home_of, notes))
    strangers = ours.isdisjoint(theirs) and (ours | theirs) <= settled
    strangers = strangers or (len(lonely) == len(notes) == 1 and _apart((), lonely[0], notes[0]))
    several = len(images) + len(notes) > 2
    return "annotations and images of one name, and no folders that pair them" if several and not strangers else ""


def _in_places(images: list[File], by_place: Mapping[tuple, list[File]]) -> tuple[dict[File, File], set[tuple]]:
    """Annotation by image: of its place, not of another split (zip files tell it, too), nor wanted by two splits.

    Also the places, zip files told apart, that have both. In these there is no annotation for another's image.
    """
    by_home, pairs, wanted = defaultdict(list), {}, defaultdict(set)
    for notes in by_place.values():
        for note in notes:
            by_home[home_of(note), note.path.stem].append(note)
    for image in images:
        stem, split = image.path.stem, split_of_folders(image.folders)

        def is_other(note: File, split: str | None = split) -> bool:
            return split_of_folders(note.folders) != split

        # Of a thousand zip files that each have a 1.xml not all are looked at
        near = [note for note in by_home.get((home_of(image), stem), ()) if not is_other(note)]
        if found := near or [note for note in by_place.get((place_of(image), stem), ()) if not _apart((), image, note)]:
            pairs[image] = min(found, key=is_other)
            wanted[pairs[image]].add(split)
    pairs = {image: note for image, note in pairs.items() if len(wanted[note] - {None}) < 2}
    own = {image: note for image, note in pairs.items() if home_of(image) == home_of(note)}
    settled, owned = set(map(home_of, own)), set(own.values())
    borrowed = {i: n for i, n in pairs.items() if i not in own and n not in owned and not _apart(settled, i, n)}
    return {image: note for image, note in pairs.items() if image in own or image in borrowed}, settled


def _apart(settled: Collection[tuple], one: File, other: File) -> bool:
    """Whether both lie in splits' folders, and not in the same, or each in a place that has images and annotations."""
    splits = {split_of_folders(f.folders) for f in (one, other)} - {None}
    homes = {home_of(one), home_of(other)} if settled else ()
    return len(splits) > 1 or (len(homes) > 1 and homes <= settled)
