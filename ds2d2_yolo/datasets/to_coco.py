"""A data set in YOLO's format, written as COCO JSON."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
from ultralytics.data import utils
from ultralytics.data.base import BaseDataset
from ultralytics.data.utils import check_det_dataset, img2label_paths, verify_image_label
from ultralytics.utils import LOGGER, NUM_THREADS, TQDM, YAML

from ds2d2_yolo.errors import UserError
from ds2d2_yolo.paths import find_config
from ds2d2_yolo.plausible import check_data_file
from ds2d2_yolo.report.coco import ground_truth

_SPLITS = ("train", "val", "test", "minival")


def write(data_yaml: str | Path, split: str = "val", target: str | Path | None = None) -> Path:
    """Write a split as COCO JSON.

    Images and labels are those that Ultralytics reads, and only read: a repeated line counts once, images with a broken
    label file are left out and named in a warning. The YAML file need not name other splits. ``file_name`` is relative
    to the data set's folder. Category ids are the class index + 1, since COCO's own count from 1, torchvision takes 0
    for the background, and Ultralytics' predictions.json has index + 1. Image ids are the files' names where all are
    different numbers, as in predictions.json, else they count from 1. Labels of corners have these as ``segmentation``
    and its area; the others the box's.

    Args:
        data_yaml: The data set's YAML file.
        split: Key of the YAML file: a folder, a list of image paths (.txt), or several of these.
        target: The file to write; default: ``annotations/instances_SPLIT.json`` in the data set's folder.

    Returns:
        The file written, whole or not at all.

    Raises:
        UserError: No such file or split, no usable images, or the target cannot be written.
    """
    data_yaml = Path(find_config(data_yaml, "data"))
    if not data_yaml.is_file():
        raise UserError(f"data file '{data_yaml}' does not exist")
    check_data_file(data_yaml, split)
    data = _described(data_yaml, split)
    if not data.get(split):
        there = ", ".join(key for key in _SPLITS if data.get(key))
        raise UserError(f"data file '{data_yaml}' has no split '{split}'; it has {there}")
    root = Path(os.path.abspath(data["path"]))
    target = Path(target).expanduser() if target else root / "annotations" / f"instances_{split}.json"
    if target.is_dir():
        raise UserError(f"'{target}' is a folder; give the JSON file to write")
    labels = _read(_images(data[split], split), data["names"], data.get("kpt_shape") or (0, 0))
    _save(_coco(labels, data["names"], root), target)
    return target


def _described(data_yaml: Path, split: str) -> dict[str, Any]:
    """What Ultralytics makes of a data file, which it wants to name train and val, and to have images in val."""

    def load(file, **options) -> dict:
        found = YAML.load(file, **options)
        return dict.fromkeys(["train"] if "validation" in found else ["train", "val"]) | found

    with patch.object(utils, "YAML", SimpleNamespace(load=load)):
        return check_det_dataset(str(data_yaml), autodownload=False, split=split if split in _SPLITS else "")


def _images(where: str | list[str], split: str) -> list[str]:
    """The image files of a split as Ultralytics lists them: sorted, those of a list that are not there among them."""
    whole = SimpleNamespace(prefix="", fraction=1.0)  # all that the method asks of a data set, labels and all
    try:
        return list(dict.fromkeys(BaseDataset.get_img_files(whole, where)))
    except FileNotFoundError as error:
        raise UserError(f"split '{split}': no images found in '{where}'") from error


def _read(images: list[str], names: dict[int, str], keypoints: Sequence[int]) -> list[dict[str, Any]]:
    """Labels in Ultralytics' own form: im_file, shape, cls, bboxes, segments.

    ``keypoints``: how many there are behind a box, and of how many numbers each.
    """
    labels, broken = [], []
    tasks = [
        (image, label, "", False, len(names), *keypoints, False)
        for image, label in zip(images, img2label_paths(images), strict=True)
    ]
    # Ultralytics would write a JPEG with bytes behind its end anew; what cannot be decoded is still left out
    with patch.object(utils, "_replace_image", lambda _, save: save(io.BytesIO())), ThreadPool(NUM_THREADS) as pool:
        found = TQDM(pool.imap(verify_image_label, tasks), desc="Reading labels", total=len(tasks), unit="img")
        for file, rows, shape, segments, *_, message in found:
            if file is None:
                broken.append(message)
                continue
            boxes = {"cls": rows[:, :1], "bboxes": rows[:, 1:]}
            labels.append({"im_file": file, "shape": shape, "segments": segments, **boxes})
    if not labels:
        raise UserError(f"none of the {len(images)} images can be used: {broken[0]}")
    if broken:
        LOGGER.warning(f"{len(broken)} of {len(images)} images left out: {'; '.join(broken[:3])}")
    return labels


def _coco(labels: list[dict[str, Any]], names: dict[int, str], root: Path) -> dict[str, Any]:
    """The truth that detectors are measured by, under ids and names that hold outside this package."""
    truth = ground_truth(labels, {i: label["shape"] for i, label in enumerate(labels, 1)}, names)
    ids = _ids(label["im_file"] for label in labels)
    for image, number in zip(truth["images"], ids, strict=True):
        image["id"] = number
        image["file_name"] = _relative(image["file_name"], root)
    for category in truth["categories"]:
        category["id"] += 1
    # In the order of the labels, as the annotations are
    outlines = [s for label in labels for s in label["segments"] or [None] * len(label["cls"])]
    for annotation, outline in zip(truth["annotations"], outlines, strict=True):
        shape = labels[annotation["image_id"] - 1]["shape"]
        annotation["image_id"] = ids[annotation["image_id"] - 1]
        annotation["category_id"] += 1
        if outline is not None:
            points = outline.astype(np.float64) * shape[::-1]
            annotation["segmentation"] = [points.ravel().tolist()]
            annotation["area"] = _area(points)
    return truth


def _ids(files: Iterable[str]) -> list[int]:
    stems = [Path(file).stem for file in files]
    if all(stem.isdecimal() for stem in stems) and len({int(stem) for stem in stems}) == len(stems):
        return [int(stem) for stem in stems]
    return list(range(1, len(stems) + 1))


def _relative(file: str, root: Path) -> str:
    path = Path(os.path.abspath(file))
    for folder in (root, root.resolve()):
        if path.is_relative_to(folder):
            return path.relative_to(folder).as_posix()
    return Path(os.path.relpath(path, root.resolve())).as_posix()


def _area(points: np.ndarray) -> float:
    x, y = (points - points[0]).T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def _save(content: dict[str, Any], target: Path) -> None:
    part = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("w", encoding="utf-8") as file:
                json.dump(content, file)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"'{target}' cannot be written: {error.strerror or error}") from error
