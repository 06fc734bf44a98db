"""Models as a user names them: their files, and the shortest names that tell them apart."""

from __future__ import annotations

import glob
import os
from collections import Counter
from contextlib import suppress
from pathlib import Path

from ultralytics.utils import LOGGER

from ds2d2_yolo.errors import UserError
from ds2d2_yolo.formats import is_model
from ds2d2_yolo.stages import is_stage_folder


def models_of(given) -> list[str]:
    """Paths of the models, each once, in the order given; * and ? match files, ** folders below each other."""
    models, given = [], [given] if isinstance(given, Path) else given
    alone = not isinstance(given, (list, tuple)) and given and Path(str(given)).exists()
    for model in [given] if alone else given if isinstance(given, (list, tuple)) else str(given or "").split(","):
        model = str(model).strip()
        if not model:
            continue
        matching = [model]
        if glob.has_magic(model) and not Path(model).exists():
            matching = _without_stages(sorted(glob.glob(model, recursive=True)))
        if not matching or not Path(matching[0]).exists():
            raise UserError(f"model '{model}' does not exist")
        if strangers := [file for file in matching if not is_model(file)]:
            raise UserError(f"'{strangers[0]}' is no model: neither a checkpoint, a .pt file, nor exported from one")
        models += matching
    if not models:
        raise UserError("no model given; say model=best.pt, or several joined by commas")
    return once(models)


def _without_stages(files: list[str]) -> list[str]:
    """Without amplifiers' stages, which lie beside the students that a pattern is meant for."""
    stages = []
    for file in files:
        with suppress(Exception):  # whatever reading a broken args.yaml raises
            stages += [file] * is_stage_folder(Path(file).absolute().parent.parent)
    if stages:
        LOGGER.info(f"left out, of an amplifier's stage and no detector: {', '.join(stages)}")
    return [file for file in files if file not in stages]


def once(models: list[str]) -> list[str]:
    """Without files that were named before, in whatever spelling."""
    first = {}
    for model in models:
        first.setdefault(os.path.abspath(model), model)
    return list(first.values())


def names_of(models: list[str]) -> list[str]:
    """Shortest names that tell the models apart: the run's folder for best.pt and its like, else the file."""

    def short(path: Path) -> str:
        end = path.suffix if path.stem in ("best", "last") else f"/{path.name}"  # such as best_int8.onnx
        of_run = path.parent.name == "weights" and len(path.parts) > 2
        return path.parts[-3] + end * (path.suffix != ".pt") if of_run else path.name

    names = [short(path) for path in map(Path, models)]
    counts = Counter(names)
    return [name if counts[name] == 1 else model for name, model in zip(names, models, strict=True)]
