"""What a reader of the report must know about how models were rated: said in the log, too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ultralytics.utils import LOGGER

from ds2d2_yolo.datasets.exported import fixed_by_export

if TYPE_CHECKING:
    from ds2d2_yolo.report.coco import Predicted

LOWEST = 0.001  # the score from which Ultralytics rates unless `conf` says otherwise


def notes_on(names: dict[str, str], seen: dict[str, Predicted], conf: float | None, imgsz=None) -> list[str]:
    """Return, and log, a line for whatever keeps the models from being rated on equal terms.

    Args:
        names: Files by the models' names.
        seen: What each was seen to find.
        conf: The lowest score that was asked for; None: Ultralytics' own.
        imgsz: The image size that was asked for, an edge or height and width.
    """
    conf = LOWEST if conf is None else conf
    lost = {name: fixed_by_export(path).low_scores_lost(conf) for name, path in names.items()}
    notes = [*_other_sizes(seen, imgsz), *(f"{name}: {line}." for name, line in lost.items() if line)]
    for note in notes:
        LOGGER.warning(note)
    return notes


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
