"""Which split a file belongs to, as names tell, and which splits a data YAML names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from ds2d2_yolo.datasets.objects import Job
from ds2d2_yolo.datasets.source import File

_SPLITS = {
    **dict.fromkeys(("train", "training", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "minival"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_WORD = "|".join(sorted(_SPLITS, key=len, reverse=True))
UNCLEAR = "folder that begins like a split's and is taken for none (rename it if it is one)"
_IN_FILE = re.compile(rf"(?<![a-z])({_WORD})(?![a-z])")
_PARTS = re.compile(r"[^\W\d_]+|\d+")
# What data sets add to the word in a folder's name, before or after it, besides numbers and single letters
_ADDED = re.compile(
    "(image|img|picture|photo|jpegimage|jpeg|label|annotation|anno|ann|xml|boxe|dataset|set|split|part|subset|sample|"
    "file|folder|crop|tile|patche|chip|scene)s?|labeltxt|jpg|png|tiff?|rgb|json|txt|gt|box|bbox|hbb|obb|patch|data|dir|"
    "batch|fold|dev|challenge|std|full|all|mini|small|large|big|new|old|raw|orig|original|clean|final|copy|version|"
    "aug|augmented|cropped|tiled|resized|px|coco|voc|yolov?|dota|dior|sar|optical|visible|infrared|thermal|ir|nir|pan|"
    "labell?ed|easy|hard|day|night|inshore|offshore|public|private|seen|unseen"
)
_AT_THE_END = {"dev", "challenge"}  # test-dev, as COCO and VisDrone have it


def split_of_list(folders: Sequence[str], name: str, others: Collection[str] = ()) -> str:
    """Return train, val or test as a file that lists images is named, else its folders, else train.

    A file that names several is for the only one of them that ``others`` do not have, else for the first.
    """
    words = [*_words_of_name(name), *_words_of_folders(folders)]
    rest = possible_splits(folders, name).difference(others)
    return rest.pop() if len(rest) == 1 else next((_SPLITS[word] for word in words), "train")


def split_of_folders(folders: Iterable[str]) -> str | None:
    """Return train, val or test as the innermost folder says that is named so, as train2017, valid, DIOR_test are."""
    return next((_SPLITS[word] for word in _words_of_folders(folders)), None)


def possible_splits(folders: Iterable[str], name: str = "") -> set[str]:
    """Return the splits that a file's name, else its folders stand for: two of trainval and train_test2017, or none."""
    words = _words_of_name(name) or _words_of_folders(folders)
    return {split for word in words for split in (("train", "val") if word == "trainval" else (_SPLITS[word],))}


def _words_of_name(name: str) -> list[str]:
    return _IN_FILE.findall(name.lower())


def _words_of_folders(folders: Iterable[str]) -> list[str]:
    """The words by which the innermost folder that has any is named."""
    return next(filter(None, map(_words_of_folder, reversed(list(folders)))), [])


def _words_of_folder(folder: str) -> list[str]:
    """The words in its name, which holds nothing else than them and ``_ADDED``, or ends with them as DIOR_test does.

    train_station, test_track and my-test-data are no splits' folders.
    """
    parts = [part for part in _PARTS.findall(folder.lower()) if len(part) > 1 and not part.isdigit()]
    if all(part in _SPLITS or _ADDED.fullmatch(part) for part in parts):
        return [part for part in parts if part in _SPLITS]
    while parts and parts[-1] in _AT_THE_END:
        parts.pop()
    return parts[-1:] if parts and parts[-1] in _SPLITS else []


def unclear_folders(files: Iterable[File]) -> list[str]:
    """Return the folders of files in no split's folder that begin like one: val_ships, or test_track?"""
    places = dict.fromkeys(f.path.parent for f in files if not split_of_folders(f.path.parts[:-1]))
    return [str(place) for place in places if any(_IN_FILE.match(part.lower()) for part in place.parts)]


def data_yaml(jobs: Iterable[Job]) -> dict[str, list[str]]:
    """Return the splits behind the keys of a data YAML.

    Without images for validation ``val`` is the test split where it has annotations, else the training split.
    """
    there, annotated = set(), set()
    for job in jobs:
        there.add(job.split)
        if job.read is not None:
            annotated.add(job.split)
    val = next(([split] for split in ("val", "test", "train") if split in annotated), [])
    keys = {"train": ["train"] if "train" in there else [], "val": val}
    return {**keys, "test": ["test"]} if "test" in there else keys
