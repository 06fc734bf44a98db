"""Average precision by the rule of Pascal VOC, which DOTA's evaluation server goes by, and COCO's of the same boxes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import shapely

from ds2d2_yolo.datasets.tile_tables import CORNERS
from ds2d2_yolo.datasets.tiles import bounds
from ds2d2_yolo.errors import UserError
from ds2d2_yolo.report.detections import Detections, Truth
from ds2d2_yolo.report.precision import voc_average
from ds2d2_yolo.report.rating import Rating, rate

_CELLS = 5_000_000  # of the matrix of detections and objects that is held at a time


def voc_ap(
    truth: pd.DataFrame,
    detections: pd.DataFrame,
    names: Mapping[int, str],
    iou: float = 0.5,
    rule: str = "07",
    rotated: bool = False,
) -> pd.DataFrame:
    """Rate detections class by class.

    By falling score, each detection is judged against the object of its class and image that it overlaps most: right
    if their IoU is *above* ``iou``, as in DOTA's development kit, and no better detection has that object. One on a
    difficult object counts neither way, and difficult objects need not be found.

    Args:
        truth: Columns image, class (index), difficult and corners x1 ... y4, a row an object.
        detections: Columns image, class (index), score and corners x1 ... y4.
        names: Classes by index.
        iou: The threshold.
        rule: ``07`` for the mean of the best precision from eleven recalls (0, 0.1 ... 1) on, ``12`` for the area
            under the curve of it.
        rotated: Compare the polygons of the corners; else the upright boxes around them, without the extra pixel
            that development kits add to width and height.

    Returns:
        A row a class, indexed by name: ``objects`` (without difficult ones), ``detections`` and ``ap`` in points (0 to
        100; nan without objects). mAP is the mean of that column.

    Raises:
        UserError: There is no such rule.
    """
    if rule not in ("07", "12"):
        raise UserError(f"rule={rule} is neither 07 nor 12")
    rows = []
    found, real = dict(list(detections.groupby("class"))), dict(list(truth.groupby("class")))
    for index, name in names.items():
        those, objects = found.get(index, detections[:0]), real.get(index, truth[:0])
        right, counts = _judged(objects, those, iou, rotated)
        total = int((~objects["difficult"].astype(bool)).sum())
        rows.append((name, total, len(those), 100 * voc_average(right[counts], total, rule)))
    return pd.DataFrame(rows, columns=["class", "objects", "detections", "ap"]).set_index("class")


def _judged(objects: pd.DataFrame, detections: pd.DataFrame, iou: float, rotated: bool):
    """Whether the detections of a class are right, and whether they count, by falling score."""
    order = np.argsort(-detections["score"].to_numpy(float), kind="stable")
    image = detections["image"].to_numpy()[order]
    corners = detections[CORNERS].to_numpy(float).reshape(-1, 4, 2)[order]
    places = objects[CORNERS].to_numpy(float).reshape(-1, 4, 2)
    overlap, match = np.zeros(len(order)), np.full(len(order), -1)
    there = objects.groupby("image", sort=False).indices
    for stem, rows in pd.Series(image).groupby(image, sort=False).indices.items():
        if stem in there:
            overlap[rows], best = best_overlaps(corners[rows], places[there[stem]], rotated)
            match[rows] = there[stem][best]
    hit = overlap > iou
    counts = ~(hit & objects["difficult"].to_numpy(bool)[match]) if len(objects) else np.ones(len(order), bool)
    right = np.zeros(len(order), bool)
    candidates = np.flatnonzero(hit & counts)
    right[candidates[np.unique(match[candidates], return_index=True)[1]]] = True
    return right, counts


def best_overlaps(corners: np.ndarray, objects: np.ndarray, rotated: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the highest IoU of each of ``(n, 4, 2)`` with any of ``(m, 4, 2)``, m > 0, and which that is: ``(n,)``."""
    step = max(_CELLS // len(objects), 1)
    function = _polygon_iou if rotated else _box_iou
    parts = [function(corners[i : i + step], objects) for i in range(0, len(corners), step)]
    best = [part.argmax(1) for part in parts]
    values = [part[np.arange(len(part)), which] for part, which in zip(parts, best, strict=True)]
    return np.concatenate(values), np.concatenate(best)


def _box_iou(corners: np.ndarray, objects: np.ndarray) -> np.ndarray:
    a, b = bounds(corners)[:, None], bounds(objects)[None]
    common = (np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])).clip(0).prod(2)
    union = (a[..., 2:] - a[..., :2]).prod(2) + (b[..., 2:] - b[..., :2]).prod(2) - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def _polygon_iou(corners: np.ndarray, objects: np.ndarray) -> np.ndarray:
    # Corners in a crossed order would be no polygon
    a, b = (shapely.convex_hull(shapely.polygons(part)) for part in (corners, objects))
    result = np.zeros((len(a), len(b)))
    i, j = shapely.STRtree(b).query(a)
    common = shapely.area(shapely.intersection(a[i], b[j]))
    union = shapely.area(a)[i] + shapely.area(b)[j] - common
    result[i, j] = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return result


def full_image_scores(
    merged: pd.DataFrame,
    objects: pd.DataFrame,
    names: Mapping[int, str],
    rotated: bool = False,
    keep_difficult: bool = True,
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Rate detections in whole images by VOC's rules and by COCO's.

    COCO's is that of the upright boxes around the corners, whatever ``rotated`` says, with all detections of an image.

    Args:
        merged: As ``voc_ap``.
        objects: As ``voc_ap``.
        names: Classes by index.
        rotated: VOC's IoU is that of the polygons.
        keep_difficult: COCO knows no difficult objects: they are objects like all others (as Ultralytics has them), or
            left out, and what is found there is wrong then.

    Returns:
        A row a class, indexed by name: objects, detections, voc07, voc12 (AP at IoU 0.5) and coco_ap, coco_ap50, all in
        points; and the means over the classes with objects: voc07, voc12, coco_ap, coco_ap50, coco_ap75.
    """
    table = voc_ap(objects, merged, names, 0.5, "07", rotated).rename(columns={"ap": "voc07"})
    table["voc12"] = voc_ap(objects, merged, names, 0.5, "12", rotated)["ap"]
    coco = _coco(merged, objects if keep_difficult else objects[~objects["difficult"].astype(bool)], names)
    for column, field in (("coco_ap", "ap"), ("coco_ap50", "ap50")):
        of_class = {kind.index: getattr(kind, field) for kind in coco.classes}
        table[column] = [of_class[index] for index in names]
    means = {column: float(table[column].mean()) for column in ("voc07", "voc12")}
    return table, {**means, **{f"coco_{key}": getattr(coco, key) for key in ("ap", "ap50", "ap75")}}


def _coco(merged: pd.DataFrame, objects: pd.DataFrame, names: Mapping[int, str]) -> Rating:
    stems = pd.unique(np.r_[objects["image"].to_numpy(object), merged["image"].to_numpy(object)])
    ids = {stem: i for i, stem in enumerate(stems)}

    def columns(table):
        places, boxes = (
            table["image"].map(ids).to_numpy(np.int64),
            bounds(table[CORNERS].to_numpy(float).reshape(-1, 4, 2)),
        )
        return places, table["class"].to_numpy(np.int64), boxes

    image, kind, box = columns(objects)
    truth = Truth(tuple(stems), np.ones((len(stems), 2)), image, kind, box, {int(i): str(n) for i, n in names.items()})
    image, kind, box = columns(merged)
    found = Detections(image, kind, merged["score"].to_numpy(float), box)
    most = int(merged.groupby(["image", "class"]).size().max()) if len(merged) else 1
    return rate(truth, found, most)
