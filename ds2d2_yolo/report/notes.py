"""What a reader of the report must know about how models were rated: said in the log, too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ultralytics.utils import LOGGER

from ds2d2_yolo.datasets.exported import fixed_by_export

if TYPE_CHECKING:
    from ds2d2_yolo.report.coco import Predicted

LOWEST = 0.001  # the score from which Ultralytics rates unless `conf` says otherwise


def notes_on(
    names: dict[str, str], seen: dict[str, Predicted], conf: float | None, imgsz=None, iou: float | None = None
) -> list[str]:
    """Return, and log, a line for whatever keeps the models from being rated on equal terms.

    Args:
        names: Files by the models' names.
        seen: What each was seen to find.
        conf: The lowest score that was asked for; None: Ultralytics' own.
        imgsz: The image size that was asked for, an edge or height and width.
        iou: The overlap from which on NMS drops a box, if it was asked for.
    """
    notes, lowest = _other_sizes(seen, imgsz), LOWEST if conf is None else conf
    rules: dict[str, tuple] = {}
    for name, path in names.items():
        fixed, one = fixed_by_export(path), seen[name]
        own = (one.floor, one.overlap) if fixed.score is None else (fixed.score, fixed.overlap)
        if own[0] is not None or (Path(path).suffix.lower() in (".pt", ".onnx") and fixed.most is None):
            rules[name] = own  # other exports do not tell what rules their head has
        counts = np.bincount(one.found.image, minlength=len(one.truth.images))
        lines = (fixed.low_scores_lost(lowest), fixed.crowded(counts, one.max_det, "images"), one.doubt)
        notes += [f"{name}: {line}." for line in lines if line]
    notes += _other_shapes(seen)
    notes += _own_rules(rules, lowest, conf is not None, iou)
    for note in notes:
        LOGGER.warning(note)
    return notes


def left_out(seen: dict[str, Predicted]) -> list[str]:
    """Return, and log, how many images are damaged and were rated by no model."""
    one = next(iter(seen.values()))
    if not one.damaged:
        return []
    first = ", ".join(Path(file).name for file in one.damaged[:5]) + ", ..." * (len(one.damaged) > 5)
    part = f"{len(one.damaged)} of {len(one.damaged) + len(one.truth.images)} images"
    note = f"{part} damaged, or with damaged labels, and left out: {first}."
    LOGGER.warning(note)
    return [note]


def _own_rules(rules: dict[str, tuple], lowest: float, asked: bool, iou: float | None) -> list[str]:
    """Says whose head drops low scores and overlapping boxes by itself, unless all do alike and nothing was asked."""
    same = len(set(rules.values())) == 1
    named: dict[tuple[float, float], list[str]] = {}
    for name, (floor, overlap) in rules.items():
        other = iou is not None and iou != overlap
        if floor is not None and (other or (floor > lowest and (asked or not same))):
            named.setdefault((floor, overlap), []).append(name)
    return [
        f"{', '.join(names)}: the head drops scores up to {floor:g} and does NMS itself, at IoU {overlap:g}: a lower "
        "conf= and any iou= do not reach it, and recall and AP go without what other models may count."
        for (floor, overlap), names in named.items()
    ]


def _other_shapes(seen: dict[str, Predicted]) -> list[str]:
    """Says who was rated on square images where others were not."""
    if not {True, False} <= {one.rect for one in seen.values()}:
        return []
    square = ", ".join(name for name, one in seen.items() if one.rect is False)
    return [f"{square}: rated on square images, the others on images padded less; rect=False rates all alike."]


def _other_sizes(seen: dict[str, Predicted], imgsz) -> list[str]:
    """Says who was rated at which image size where it is not the one that was asked for."""
    sizes = {name: "{1} x {0} px".format(*one.imgsz) for name, one in seen.items()}
    if len(taken := {one.imgsz for one in seen.values()}) == 1:
        parts = imgsz if isinstance(imgsz, (list, tuple)) else str(imgsz or "").split(",")
        asked = tuple(int(float(part)) for part in parts if str(part).strip())
        if not asked or taken & {asked, (max(asked),) * 2}:  # Ultralytics rates at the larger edge
            return []
        size = next(iter(sizes.values()))
        return [f"Rated at {size}, not at imgsz={imgsz}: a file can be bound to its size, and a model to its stride."]
    return [f"Not all were rated at the same image size: {', '.join(f'{n} at {size}' for n, size in sizes.items())}."]
