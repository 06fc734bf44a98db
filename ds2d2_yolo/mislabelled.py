"""Why Ultralytics can use few of a data set's images, or none: one cause, one file, the way out; it names all files."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest.mock import patch

from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import img2label_paths, verify_image_label
from ultralytics.utils import LOGGER, RANK

from ds2d2_yolo.errors import one_line

ROW = (
    "a YOLO label is class x y width height, the centre and size of a box as fractions of the image's width and height"
)
CONVERT = "convert them with python -m ds2d2_yolo.datasets {} (docs/datasets.md)"
SEEN = 200  # images that are left out and looked at again for the reason
_LEFT_OUT = re.compile(r"(?:\x1b\[[\d;]*m|\w+: )*(?P<image>.+?): ignoring corrupt image/label: (?P<why>.*)", re.DOTALL)
_CLASS = re.compile(r"Label class (\d+) exceeds dataset class count (\d+)")
_KINDS = {  # Ultralytics' words, and what the files hold
    "non-normalized or out of bounds": f"coordinates beyond 0 to 1, such as {{label}}: {ROW}; divide pixels by these",
    "negative label values": f"numbers below 0, such as {{label}}: {ROW}",
    "non-integer class": f"classes that are no whole numbers, such as {{label}}: {ROW}",
    "labels require 5 columns": f"rows of another length, such as {{label}}: {ROW}",
    "inhomogeneous shape": f"rows of different lengths, such as {{label}}: {ROW}",
    "could not convert string": f"words, such as {{label}}: {ROW}; if these are DOTA's, {CONVERT.format('dota')}",
}


def why_none(dataset: YOLODataset, messages: list[str] | None) -> str:
    """Say why no image can be used, or none has a label.

    Args:
        dataset: Half made, with its ``im_files``.
        messages: What Ultralytics has said of each image that it left out; None: they are there, without labels.
    """
    if messages is None:
        return where_expected(dataset.im_files)
    where, count = _place(dataset), len(dataset.im_files)
    return f"none of the {count} images of {where} can be used: {_cause(messages)}"


def where_expected(images) -> str:
    """Say where labels of the images are looked for; "" if there is any."""
    images = [str(image) for image in images]
    labels = img2label_paths(images)
    if not images or any(map(os.path.isfile, labels)):
        return ""
    expected = f"no label file is there: expected {labels[0]} for {images[0]}"
    rest = f", and likewise for the other {len(images) - 1}" if len(images) > 1 else ""
    return f"{expected}{rest}; {_elsewhere(Path(images[0]), Path(labels[0]))}"


def _elsewhere(image: Path, label: Path) -> str:
    """What lies where other tools put labels, and what to do with it."""
    folders = image.parts[:-1]
    if "images" not in folders:
        return "images belong into a folder images, and their labels into a folder labels beside it"
    at = len(folders) - 1 - folders[::-1].index("images")
    root, inside = Path(*folders[:at]), Path(*folders[at + 1 :])
    for folder in _folders(root):
        for place in dict.fromkeys((folder / inside, folder)):
            if folder.name != "images" and os.path.isfile(found := place / label.name):
                return f"there is {found}: move such files to {label.parent}"
            if os.path.isfile(found := place / f"{label.stem}.xml"):
                return f"there is {found}: if such files are Pascal VOC's or DIOR's, {CONVERT.format('voc|dior')}"
            if found := next(iter(sorted(glob.glob(f"{glob.escape(str(place))}/*.json"))), None):
                return f"there is {found}: if such files are COCO's, {CONVERT.format('coco')}"
    if os.path.isfile(found := image.with_name(label.name)):
        return f"there is {found}: move such files to {label.parent}"
    return f"{ROW}; other formats: python -m ds2d2_yolo.datasets (docs/datasets.md)"


def _folders(root: Path) -> list[Path]:
    with suppress(OSError):  # what cannot be looked into says nothing
        return [Path(entry.path) for entry in sorted(os.scandir(root), key=lambda e: e.name) if os.path.isdir(entry)]
    return []


@contextmanager
def telling() -> Iterator[None]:
    """Warn once of each split of which more than half of the images are left out, until the context ends."""
    read, said = YOLODataset.get_labels, set()
    if hasattr(read, "tells"):  # an amplifier's stage, within the training of its student
        yield
        return

    def get_labels(dataset):
        images, labels = list(dataset.im_files), read(dataset)
        if RANK in {-1, 0} and len(labels) * 2 < len(images) and (place := _place(dataset)) not in said:
            said.add(place)
            kept = {label["im_file"] for label in labels}
            left = [image for image in images if image not in kept]
            cause = _cause(_complaints(dataset, left[:SEEN]))
            LOGGER.warning(f"{len(left)} of the {len(images)} images of {place} are left out: {cause}")
        return labels

    get_labels.tells = True
    with patch.object(YOLODataset, "get_labels", get_labels):
        yield


def _complaints(dataset: YOLODataset, images: list[str]) -> list[str]:
    """What Ultralytics has to say of images: it has said so before, and keeps it to itself."""
    classes = len(dataset.data["names"])
    pairs = zip(images, img2label_paths(images), strict=True)
    return [verify_image_label((*pair, "", False, classes, 0, 0, dataset.single_cls))[-1] for pair in pairs]


def _place(dataset: YOLODataset) -> str:
    first, *more = dataset.img_path if isinstance(dataset.img_path, list) else [dataset.img_path]
    return f"{first}{' ...' if more else ''}"


def _cause(messages: list[str]) -> str:
    """The most frequent cause, by one of its files."""
    found = [match for message in messages if (match := _LEFT_OUT.fullmatch(message))]
    if not found:
        return one_line(" ".join(messages[:1])) or "the log says why"
    kind, count = Counter(_kind(match["why"]) for match in found).most_common(1)[0]
    first = next(match for match in found if _kind(match["why"]) == kind)
    (label,) = img2label_paths([first["image"]])
    if known := _CLASS.search(first["why"]):
        wrong, names = map(int, known.groups())
        others = f" ({count} such files)" if count > 1 else ""
        end = f"the data set's names end at {names - 1}: classes count from 0"
        return f"label class {wrong} in {label}, but {end}{others}"
    if kind in _KINDS:
        who = f"{count} of {len(found)} label files hold" if len(found) > 1 else "its label file holds"
        return f"{who} {_KINDS[kind].format(label=label)}"
    why, image = one_line(first["why"]), first["image"]
    if "pi_heif" in why:  # with which Ultralytics tries what PIL cannot read
        why = "cannot be read as an image"
    return f"{why if image in why else f'{image}: {why}'}{f', and {count - 1} others like it' if count > 1 else ''}"


def _kind(why: str) -> str:
    """What messages of one cause have in common: known words, or the first."""
    return next((words for words in ("Label class", *_KINDS) if words in why), next(iter(why.split()), ""))
