"""What a reader of the report must know about how models were rated: said in the log, too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ultralytics.utils import LOGGER

from ds2d2_yolo.datasets.exported import fixed_by_export

if TYPE_CHECKING:
    from ds2d2_yolo.report.coco import Predicted

LOWEST = 0.001  # the score from which Ultralytics rates unless `conf` says otherwise


def notes_on(names: dict[str, str], seen: dict[str, Predicted], conf: float | None) -> list[str]:
    """Return, and log, a line for whatever keeps the models from being rated on equal terms.

    Args:
        names: Files by the models' names.
        seen: What each was seen to find.
        conf: The lowest score that was asked for; None: Ultralytics' own.
    """
    conf = LOWEST if conf is None else conf
    lost = {name: fixed_by_export(path).low_scores_lost(conf) for name, path in names.items()}
    notes = [*_other_sizes(seen), *(f"{name}: {line}." for name, line in lost.items() if line)]
    for note in notes:
        LOGGER.warning(note)
    return notes


def _other_sizes(seen: dict[str, Predicted]) -> list[str]:
    """Says who was rated at which image size where files are bound to one of their own."""
    sizes = {name: "{} x {} px".format(*one.imgsz) for name, one in seen.items()}
    if len(set(sizes.values())) == 1:
        return []
    return [f"Not all were rated at the same image size: {', '.join(f'{n} at {size}' for n, size in sizes.items())}."]
