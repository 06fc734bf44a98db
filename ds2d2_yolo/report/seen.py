"""One image as a detector sees it, with its objects where there is a label file."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from ultralytics.data.augment import LetterBox
from ultralytics.data.utils import IMG_FORMATS, img2label_paths
from ultralytics.utils.patches import imread

from ds2d2_yolo.errors import UserError


@dataclass(frozen=True)
class Seen:
    """An image after resizing and padding.

    `tensor` (1, C, H, W) float32 in [0, 1]; `picture` (H, W, 3) uint8 RGB; `content` (x1, y1, x2, y2) the part within
    the padding; `boxes` (N, 4) xyxy of the labelled objects in pixels of the padded image, None without a label file
    that can be read; `labels` where that file is looked for.
    """

    tensor: Tensor
    picture: np.ndarray
    content: tuple[int, int, int, int]
    boxes: Tensor | None
    labels: Path


def see(file: str | Path, channels: int = 3, imgsz: int = 640, stride: int = 32) -> Seen:
    """Read an image and prepare it as Ultralytics does: longer side `imgsz`, padded to multiples of `stride`.

    The label file is where Ultralytics expects it: the last folder `images` of the path becomes `labels`.
    Raises UserError where there is no image, it cannot be read, or it has other channels.
    """
    pixels = _read(Path(file), channels)
    resize = LetterBox(imgsz, auto=True, stride=stride)
    place = resize.get_params({"img": pixels})
    padded = resize(image=pixels).reshape(*_padded_size(place), -1)
    padded = np.ascontiguousarray(padded[..., ::-1]) if channels == 3 else padded
    tensor = torch.from_numpy(padded.transpose(2, 0, 1).copy())[None].float() / 255
    picture = padded if channels == 3 else np.repeat(padded[..., :1], 3, axis=2)
    width, height = place["new_unpad"]
    content = (place["left"], place["top"], place["left"] + width, place["top"] + height)
    labels = Path(img2label_paths([str(Path(file).absolute())])[0])
    boxes = _labelled(labels)
    if boxes is not None:
        scale, offset = torch.tensor([width, height] * 2), torch.tensor(content[:2] * 2)
        boxes = boxes * scale + offset
    return Seen(tensor, picture, content, boxes, labels)


def neighbours(file: str | Path, count: int) -> list[Path]:
    """Up to `count` other images of the same folder, evenly spread over their names."""
    file = Path(file)
    others = sorted(p for p in file.parent.iterdir() if p.suffix[1:].lower() in IMG_FORMATS and p.name != file.name)
    return others[:: max(1, -(-len(others) // count))]


def _read(file: Path, channels: int) -> np.ndarray:
    if file.is_dir():
        raise UserError(f"'{file}' is a folder; name one image in it")
    if not file.is_file():
        raise UserError(f"there is no image '{file}'")
    flags = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR}.get(channels, cv2.IMREAD_UNCHANGED)
    pixels = None
    with suppress(Exception):  # OpenCV and Pillow have many for a broken file
        pixels = imread(file, flags)
    if pixels is None or pixels.dtype != np.uint8:
        raise UserError(f"the image '{file}' cannot be read; is it complete, and of a format that Ultralytics reads?")
    if pixels.shape[2] != channels:
        raise UserError(f"the image '{file}' has {pixels.shape[2]} channels and the model takes {channels}")
    return pixels


def _padded_size(place: dict) -> tuple[int, int]:
    width, height = place["new_unpad"]
    return height + place["top"] + place["bottom"], width + place["left"] + place["right"]


def _labelled(path: Path) -> Tensor | None:
    """Boxes (N, 4) xyxy relative to the image, of lines `class x y w h` or `class x1 y1 x2 y2 x3 y3 ...`."""
    try:
        rows = [
            [float(v) for v in line.split()]
            for line in path.read_text(encoding="utf-8-sig").splitlines()
            if line.strip()
        ]
    except (OSError, ValueError):  # none, or text that is no labels
        return None
    if any(len(row) < 5 or len(row) % 2 == 0 for row in rows):
        return None
    boxes = []
    for row in rows:
        points = torch.tensor(row[1:]).reshape(-1, 2)
        if len(points) == 2:
            boxes.append(torch.cat([points[0] - points[1] / 2, points[0] + points[1] / 2]))
        else:
            boxes.append(torch.cat([points.amin(0), points.amax(0)]))
    return torch.stack(boxes) if boxes else torch.zeros(0, 4)
