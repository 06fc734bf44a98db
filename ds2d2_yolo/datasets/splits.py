"""Which split a file belongs to, as names tell, and which splits a data YAML names."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ds2d2_yolo.datasets.objects import Job

_SPLITS = {
    **dict.fromkeys(("train", "training", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "minival"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_WORD = "|".join(sorted(_SPLITS, key=len, reverse=True))
_IN_FILE = re.compile(rf"(?<![a-z])({_WORD})(?![a-z])")
# A folder's name begins or ends with the word: "my-test-data" says nothing
_IN_FOLDER = re.compile(rf"({_WORD})(?![a-z]).*|.*(?<![a-z])({_WORD})[0-9]*")


def split_of_name(name: str) -> str | None:
    """Return train, val or test if a file's name holds such a word, as instances_train2017 does."""
    return _SPLITS.get(_word_of_name(name))


def split_of_folders(folders: Iterable[str]) -> str | None:
    """Return train, val or test as the innermost folder says that is named so, as train2017, valid, DIOR_test are."""
    return _SPLITS.get(_word_of_folders(folders))


def possible_splits(folders: Iterable[str], name: str = "") -> set[str]:
    """Return the splits that a file's name, else its folders stand for: both of trainval, none where no word is."""
    word = _word_of_name(name) or _word_of_folders(folders)
    return {"train", "val"} if word == "trainval" else {_SPLITS[word]} if word else set()


def _word_of_name(name: str) -> str | None:
    found = _IN_FILE.search(name.lower())
    return found and found[1]


def _word_of_folders(folders: Iterable[str]) -> str | None:
    for folder in reversed(list(folders)):
        if found := _IN_FOLDER.fullmatch(folder.lower()):
            return found[1] or found[2]
    return None


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
