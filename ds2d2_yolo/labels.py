"""What a data set's labels say, in a few digits."""

from __future__ import annotations

import glob
import hashlib
import os
from pathlib import Path

from ultralytics.data.utils import IMG_FORMATS, img2label_paths


def labels_digest(data: dict, split: str = "train") -> str:
    """Return 16 hexadecimal digits that stand for the names and sizes of a split's images and for their labels.

    They stay the same where the data set is copied or moved as a whole, and differ once a label file has changed.

    Args:
        data: A data set as Ultralytics has read it: its splits (paths of folders or of text files that list images)
            and ``path``, the data set's root.
        split: Which split.
    """
    digest = hashlib.sha256()
    for name, image, label in _files(data, split):
        digest.update(os.fsencode(name))
        digest.update(f"\0{_size(image)}\0".encode())
        digest.update(_content(label))
    return digest.hexdigest()[:16]


def _files(data: dict, split: str) -> list[tuple[str, str, str]]:
    """Every image's path from the data set's root, its path, and that of its label; in the order of the first."""
    root, images = os.path.realpath(data["path"]), _images(data[split])
    inside = f"{root}{os.sep}"
    names = (i.removeprefix(inside) if i.startswith(inside) else os.path.relpath(i, root) for i in images)
    return sorted(zip(names, images, img2label_paths(images), strict=True))


def _images(places: str | list[str]) -> list[str]:
    """Find the images as Ultralytics does."""
    found = []
    for place in map(Path, places if isinstance(places, list) else [places]):
        if place.is_dir():
            found += glob.glob(str(Path(glob.escape(str(place))) / "**" / "*.*"), recursive=True)
        elif place.is_file():
            here = f"{place.parent}{os.sep}"
            lines = place.read_text(encoding="utf-8-sig", errors="replace").strip().splitlines()
            found += [line.replace("./", here, 1) if line.startswith("./") else line for line in lines]
    return [path for path in found if path.rpartition(".")[-1].lower() in IMG_FORMATS]


def _size(image: str) -> int | None:
    try:
        return os.stat(image).st_size
    except OSError:
        return None  # Ultralytics leaves it out of training, and says so


def _content(label: str) -> bytes:
    """Return a digest of the label file: as long for every file, so that none reads like two."""
    try:
        with open(label, "rb") as file:
            return hashlib.sha256(file.read()).digest()
    except OSError:
        return bytes(hashlib.sha256().digest_size)  # an image without objects
