"""Which split a file belongs to, as names tell, and which splits a data YAML names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache

from ds2d2_yolo.datasets.objects import Job

_TWO = ("trainval", "valminusminival")  # of train and val; the second is COCO 2014's, whose images lie in val2014
_SPLITS = {
    **dict.fromkeys(("train", "training", *_TWO), "train"),
    **dict.fromkeys(("val", "valid", "validation", "minival"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_WORD = "|".join(sorted(_SPLITS, key=len, reverse=True))
_IN_FILE = re.compile(rf"(?<![a-z])({_WORD})(?![a-z])")
# A folder's name begins or ends with the word: "my-test-data" says nothing
_NAMED = rf"({_WORD})(?:sets?|images?|imgs?)?"
_IN_FOLDER = re.compile(rf"{_NAMED}(?![a-z]).*|.*(?<![a-z]){_NAMED}[0-9]*(?:[-_](?:dev|challenge))?")
_COLUMN = re.compile(r"\s+-?[01]$")
# What lies on the ground and is called so, in data sorted by class
_THINGS = re.compile(
    r"train[^a-z]*(station|track|depot|yard|car|carriage|wagon|line|bridge|platform|stop|terminal)s?[^a-z]*"
    r"|training[^a-z]*(ground|field)s?[^a-z]*|test[^a-z]*tracks?[^a-z]*"
)


def split_of_list(folders: Sequence[str], name: str, others: Collection[str] = ()) -> str | None:
    """Return train, val or test as a file that lists images is named, else its folders, if these say it.

    A file that names several is for the only one of them that ``others`` do not have, else for the first.
    """
    words = [*_words_of_name(name), *_words_of_folders(tuple(folders))]
    rest = possible_splits(folders, name).difference(others)
    return rest.pop() if len(rest) == 1 else next((_SPLITS[word] for word in words), None)


def split_of_folders(folders: Iterable[str]) -> str | None:
    """Return train, val or test as the innermost folder says that is named so, as train2017, valid, DIOR_test are."""
    return next((_SPLITS[word] for word in _words_of_folders(tuple(folders))), None)


def possible_splits(folders: Iterable[str], name: str = "") -> set[str]:
    """Return the splits that a file's name, else its folders stand for: two of trainval and train_test2017, or none."""
    words = _words_of_name(name) or _words_of_folders(tuple(folders))
    return {split for word in words for split in (("train", "val") if word in _TWO else (_SPLITS[word],))}


def _words_of_name(name: str) -> list[str]:
    return _IN_FILE.findall(name.lower())


@lru_cache(4096)
def _words_of_folders(folders: tuple[str, ...]) -> tuple[str, ...]:
    """The words by which the innermost folder that has any is named; train_station is none."""
    for folder in map(str.lower, reversed(folders)):
        if (found := _IN_FOLDER.fullmatch(folder)) and not _THINGS.fullmatch(folder):
            return (found[2],) if found[2] else (found[1], *_IN_FILE.findall(folder[found.end(1) :]))
    return ()


def without_column(line: str) -> str:
    """Return a line of a split list without VOC's column of 1 and -1, which tells of a class."""
    return _COLUMN.sub("", line.strip())


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
