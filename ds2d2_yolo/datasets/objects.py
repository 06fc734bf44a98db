"""What an annotation says of one image, and what a conversion is made of."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ds2d2_yolo.datasets.source import File

_HALF = re.compile("[\ud800-\udfff]")  # half a character: what Python reads a byte of a name as that is no UTF-8


@dataclass
class Objects:
    """The objects of one image.

    Attributes:
        classes: ``(n,)`` indices, int.
        corners: ``(n, 4, 2)`` x and y in pixels, float64, around each object; those of an upright box begin top left
            and go clockwise.
        difficult: ``(n,)`` whether it is flagged as difficult.
        problems: Why objects, or the annotation as a whole, were left out, and how many: {reason: count}.
        size: Width and height as the annotation claims, or None.
        full: ``(n, 4, 2)`` the corners as annotated, where ``corners`` end at the image's edge; default: ``corners``.
    """

    classes: np.ndarray
    corners: np.ndarray
    difficult: np.ndarray
    problems: dict[str, int] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    full: np.ndarray | None = None

    def __post_init__(self):
        self.full = self.corners if self.full is None else self.full

    @classmethod
    def of(cls, rows: list[tuple[int, np.ndarray, bool]], problems: dict[str, int] | None = None, size=None) -> Objects:
        """Put together rows of class, corners ``(4, 2)`` and difficulty."""
        classes = np.array([row[0] for row in rows], np.int64)
        corners = np.array([row[1] for row in rows], np.float64).reshape(-1, 4, 2)
        return cls(classes, corners, np.array([row[2] for row in rows], bool), dict(problems or {}), size)

    def __len__(self) -> int:
        return len(self.classes)

    def state(self) -> str:
        """Return what tells them from others: 16 hexadecimal digits."""
        parts = (self.classes, self.corners.round(2) + 0.0, self.difficult)  # no -0.0
        return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:16]

    def chosen(self, which: np.ndarray) -> Objects:
        """Return those that a mask or indices choose, without the problems."""
        arrays = (part[which] for part in (self.classes, self.corners, self.difficult))
        return Objects(*arrays, {}, self.size, self.full[which])


def upright(x1: float, y1: float, x2: float, y2: float) -> np.ndarray:
    """Return the corners ``(4, 2)`` of an upright box."""
    return np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], np.float64)


@dataclass(frozen=True)
class Job:
    """One image to convert.

    Attributes:
        split: The folder of the result: train, val or test.
        image: The image.
        read: Returns its ``Objects``; raises ``ValueError`` with a short reason where the annotation is broken. None
            for images that have none by design (a test set).
        name: Of the files written, without suffix; default: the image's.
    """

    split: str
    image: File
    read: Callable[[], Objects] | None
    name: str = ""

    @property
    def stem(self) -> str:
        """Name of the files written, without suffix: bytes that are no UTF-8 as %FC, since OpenCV takes text alone."""
        return _HALF.sub(lambda half: f"%{ord(half[0]):X}".replace("%DC", "%"), self.name or self.image.path.stem)

    def objects(self) -> Objects:
        """Read the annotation; without one there are no objects.

        Raises:
            ValueError: It is broken, with a short reason.
        """
        return self.read() if self.read else Objects.of([])


@dataclass
class Plan:
    """What is to be converted, before any image is opened.

    Attributes:
        kind: Of data set, as the command names it.
        names: The classes in their order.
        jobs: The images; no two of a split have the same stem.
        yaml: Keys of the data YAML (train, val, test), folders under ``images`` each.
        problems: What was seen already: {reason: names of files}.
        settings: How the annotations are read, where that is not the default: a conversion goes on with the same only.
    """

    kind: str
    names: list[str]
    jobs: list[Job]
    yaml: dict[str, list[str]]
    problems: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    settings: dict[str, str | int] = field(default_factory=dict)
