"""``val.py``: what detectors are worth on a data set, side by side."""

from __future__ import annotations

from collections import Counter
from difflib import get_close_matches
from pathlib import Path

from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER

from ds2d2_yolo.errors import UserError
from ds2d2_yolo.report.coco import evaluate
from ds2d2_yolo.report.tables import Comparison, comparison

OWN = ("teacher", "save_dir")


def run(settings: dict) -> Comparison:
    """Evaluate one or more models and print one table.

    Args:
        settings: ``model`` (a path, or several joined by commas: .pt, .onnx and whatever Ultralytics loads), ``data``,
            optionally ``teacher`` (a further model, to which gaps are given), ``save_dir`` (a folder for the table as
            CSV and Markdown) and any Ultralytics validation argument (``imgsz``, ``batch``, ``split`` ...).

    Raises:
        UserError: An unknown setting, a missing file, or a model that does not fit the data.
    """
    settings = dict(settings)
    for key in settings:
        if key not in DEFAULT_CFG_DICT and key not in OWN:
            nearest = get_close_matches(key, [*DEFAULT_CFG_DICT, *OWN])
            raise UserError(f"unknown setting '{key}'" + (f"; did you mean {' or '.join(nearest)}?" if nearest else ""))
    models, data = _models(settings.pop("model")), settings.pop("data", None)
    if not data:
        raise UserError("no data set given; say data=my.yaml")
    teacher, folder = settings.pop("teacher", None), settings.pop("save_dir", None)
    if teacher and str(teacher) not in models:
        models = [str(teacher), *models]
    names = _names(models)
    rows = {}
    for name, model in zip(names, models, strict=True):
        LOGGER.info(f"\n{model}")
        rows[name] = evaluate(model, data, **{"imgsz": 640, "batch": 16, **settings})
    table = comparison(rows, teacher=names[models.index(str(teacher))] if teacher else None)
    print(f"\n{table}\n")
    if folder:
        print("\n".join(f"written {path}" for path in table.write(folder)))
    return table


def _models(given) -> list[str]:
    models = [str(m) for m in given] if isinstance(given, (list, tuple)) else str(given).split(",")
    models = list(dict.fromkeys(m.strip() for m in models if m.strip()))
    for model in models:
        if not Path(model).exists():
            raise UserError(f"model '{model}' does not exist")
    return models


def _names(models: list[str]) -> list[str]:
    """Shortest names that tell the models apart: the run's folder for best.pt and its like, else the file."""
    short = [p.parts[-3] if p.parent.name == "weights" and len(p.parts) > 2 else p.name for p in map(Path, models)]
    counts = Counter(short)
    return [name if counts[name] == 1 else model for name, model in zip(short, models, strict=True)]
