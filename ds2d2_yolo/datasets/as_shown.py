"""Annotations of images as they lie in their files, for images that EXIF turns before anyone sees them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import numpy as np

from ds2d2_yolo.datasets.objects import Objects
from ds2d2_yolo.datasets.pictures import Picture, open_image
from ds2d2_yolo.datasets.source import File

# The corner that is top left of an upright box once it is turned, and those that follow clockwise
_ORDER = {5: [0, 3, 2, 1], 6: [3, 0, 1, 2], 7: [2, 1, 0, 3], 8: [1, 2, 3, 0]}


def as_shown(objects: Objects, file: File, picture: Picture) -> Objects:
    """Turn objects as EXIF turns their image, where width and height in the annotation are exchanged by that.

    Half a turn changes neither: it cannot be told from annotations of the image as it is shown, which these are taken
    for, and so are those that reach where only that image does: some tools take the size alone from the file.
    """
    width, height = picture.height, picture.width  # as in the file
    if objects.size != (width, height) or width == height or (kind := _orientation(file)) not in _ORDER:
        return objects
    beyond, within = (
        objects.corners > (width + 1, height + 1),
        objects.corners <= (picture.width + 1, picture.height + 1),
    )
    if beyond.any() and within.all():
        return objects
    x, y = objects.corners[..., 0], objects.corners[..., 1]
    places = {5: (y, x), 6: (height - y, x), 7: (height - y, width - x), 8: (y, width - x)}[kind]
    corners = np.stack(places, -1)[:, _ORDER[kind]]
    problems = {**objects.problems, "annotated as it lies in the file (turned as its EXIF says)": 1}
    return replace(objects, corners=corners, full=corners, size=(picture.width, picture.height), problems=problems)


def _orientation(file: File) -> int | None:
    with suppress(Exception), file.open() as stream, open_image(stream) as image:  # whole, as ``inspect`` has seen
        return image.getexif().get(274)
    return None
