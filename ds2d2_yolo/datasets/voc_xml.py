"""Annotations in Pascal VOC's XML, as DIOR and labelling tools write them: upright boxes and rotated ones."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from xml.etree import ElementTree

import numpy as np

from ds2d2_yolo.datasets.objects import Objects, upright
from ds2d2_yolo.datasets.source import File
from ds2d2_yolo.errors import UserError

_DECLARED = re.compile(rb"""\s*<\?xml[^>]*?\bencoding\s*=\s*["'](?!utf)([A-Za-z][\w.-]*)["'][^>]*\?>""", re.I)
_CORNERS = ("left_top", "right_top", "right_bottom", "left_bottom")


def read_objects(text: bytes, index: Mapping[str, int], rotated: bool = False, origin: int = 0) -> Objects:
    """Read the objects of one image.

    Args:
        text: The XML file's content.
        index: Class index by name.
        rotated: Take ``robndbox`` where an object has one.
        origin: Coordinate of the first pixel in ``bndbox``; with 1, as in VOC, both ends of a box are inside it.

    Raises:
        ValueError: It is cut short or no such annotation.
    """
    root = parse(text)
    rows, problems = [], Counter()
    for element in root.iter("object"):
        name = (element.findtext("name") or "").strip()
        if name not in index:
            problems[f"unknown class '{name}'"] += 1
            continue
        corners = _corners(element, rotated, origin)
        if corners is None:
            problems["box without numbers"] += 1
            continue
        rows.append((index[name], corners, (element.findtext("difficult") or "0").strip() == "1"))
    width, height = (_number(root.find(f"size/{edge}")) for edge in ("width", "height"))
    return Objects.of(rows, problems, (int(width), int(height)) if width and height else None)


def class_names(text: bytes) -> list[str]:
    """Return the names of the objects' classes, with repetitions.

    Raises:
        ValueError: As ``read_objects``.
    """
    return [(element.findtext("name") or "").strip() for element in parse(text).iter("object")]


def unnamed(names: Sequence[str], files: Iterable[File]) -> list[str]:
    """Return those of given classes that no annotation names.

    Raises:
        UserError: Annotations name others alone: a slip of the pen, by which all boxes would be lost.
    """
    there = set()
    for file in files:
        with suppress(ValueError, OSError):
            there.update(class_names(file.read()))
    there -= {""}
    if there and there.isdisjoint(names):
        raise UserError(f"there is no class '{names[0]}'; the annotations have {', '.join(sorted(there))}")
    return [name for name in names if name not in there]


def parse(text: bytes) -> ElementTree.Element:
    """Parse an XML annotation.

    Raises:
        ValueError: It is cut short or no such annotation.
    """
    declared = _DECLARED.match(text)
    try:
        # Expat knows no encoding whose letters have two bytes or more, such as GB2312, but UTF-8 and UTF-16
        root = ElementTree.fromstring(text[declared.end() :].decode(declared[1].decode()) if declared else text)
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # LookupError: an encoding no one knows
        raise ValueError("annotation that is no whole XML file") from error
    if root.tag != "annotation":
        raise ValueError("XML file without an annotation")
    return root


def _corners(element: ElementTree.Element, rotated: bool, origin: int) -> np.ndarray | None:
    box, turned = element.find("bndbox"), element.find("robndbox")
    if turned is not None and (rotated or box is None):
        corners = _turned(turned)
        return corners if rotated or corners is None else upright(*corners.min(0), *corners.max(0))
    values = [_number(box.find(name)) if box is not None else None for name in ("xmin", "ymin", "xmax", "ymax")]
    return None if None in values else upright(values[0] - origin, values[1] - origin, *values[2:])


def _turned(box: ElementTree.Element) -> np.ndarray | None:
    """DIOR's four corners, or roLabelImg's centre, edges and clockwise angle in radians."""
    values = [_number(box.find(f"{axis}_{corner}")) for corner in _CORNERS for axis in "xy"]
    if None not in values:
        return np.array(values, np.float64).reshape(4, 2)
    values = [_number(box.find(name)) for name in ("cx", "cy", "w", "h", "angle")]
    if None in values:
        return None
    cx, cy, w, h, angle = values
    turn = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
    return upright(-w / 2, -h / 2, w / 2, h / 2) @ turn + (cx, cy)


def _number(element: ElementTree.Element | None) -> float | None:
    try:
        value = float(element.text)
    except (AttributeError, TypeError, ValueError):
        return None
    return value if np.isfinite(value) else None
