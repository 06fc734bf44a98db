"""Detections drawn into an image, with a legend of their classes beside it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from ultralytics.utils.plotting import colors

_LONG = 1000  # to what length a small image is enlarged: a line is thin then beside an object of ten pixels
_ROW, _GAP, _MARK = 28, 10, 14  # pixels
_GROUND = (200, 200, 200)
_ROWS = 20  # of the legend that an image is made high enough for


def with_boxes(image: np.ndarray, boxes: np.ndarray, classes: list[int], names: dict[int, str]) -> np.ndarray:
    """Draw boxes in their classes' colours, and beside the image how many of each class there are.

    Labels at the boxes would hide small objects. A small image is enlarged by a whole factor.

    Args:
        image: (H, W, C), blue first; of other than 3 channels the first, or the first three, are shown
        boxes: (N, 4), left, top, right, bottom in the image's pixels
        classes: the N boxes' class numbers
        names: of the classes

    Returns:
        (H', W', 3) uint8, blue first.
    """
    image = image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)
    factor = max(1, round(_LONG / max(image.shape[:2])))
    picture = cv2.resize(np.ascontiguousarray(image), None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    for box, kind in zip((boxes * factor).round().astype(int).tolist(), classes, strict=True):
        cv2.rectangle(picture, tuple(box[:2]), tuple(box[2:]), colors(kind, bgr=True), 2)
    found = sorted(Counter(classes).items())
    rows = [(f"{count} {names[kind]}", colors(kind)) for kind, count in found] or [("nothing found", colors(0))]
    height = max(len(picture), _GAP + _ROW * min(len(rows), _ROWS))  # of a flat image: room below it
    picture = cv2.copyMakeBorder(picture, 0, height - len(picture), 0, 0, cv2.BORDER_CONSTANT, value=_GROUND)
    return np.hstack([picture, _legend(rows, height)])


def _legend(rows: list[tuple[str, tuple[int, int, int]]], height: int) -> np.ndarray:
    """Names beside their colours, in as many columns as this height wants: (height, W, 3), blue first."""
    # Matplotlib's own: at hand without a download, and of more scripts than OpenCV's
    font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), 18)
    fitting = max((height - _GAP) // _ROW, 1)
    columns = [rows[start : start + fitting] for start in range(0, len(rows), fitting)]
    widths = [max(int(font.getlength(text)) for text, _ in column) + _MARK + 3 * _GAP for column in columns]
    legend = Image.new("RGB", (sum(widths), height), _GROUND)
    pen, left = ImageDraw.Draw(legend), _GAP
    for column, width in zip(columns, widths, strict=True):
        for row, (text, color) in enumerate(column):
            top = _ROW * row + _GAP
            pen.rectangle((left, top, left + _MARK, top + _MARK), outline=color, width=4)
            pen.text((left + _MARK + _GAP, top - _GAP // 2), text, fill="black", font=font)
        left += width
    return np.asarray(legend)[..., ::-1]
