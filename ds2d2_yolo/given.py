"""Models as a user names them: their files, and the shortest names that tell them apart."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from contextlib import suppress
from pathlib import Path

from ultralytics.utils import LOGGER

from ds2d2_yolo.errors import UserError
from ds2d2_yolo.formats import is_model
from ds2d2_yolo.paths import folder_instead
from ds2d2_yolo.report.seeds import seedless
from ds2d2_yolo.stages import is_stage_folder

# Of amplifiers, beside their teacher or with their student's run, and of a run under way
_NO_DETECTOR = re.compile(r"(.+-amplifier-[0-9a-f]{10}|amplifier|state-\d+)\.pt")


def models_of(given) -> list[str]:
    """Paths of the models, each once, in the order given; * and ? match files, ** folders below each other."""
    models, given = [], [given] if isinstance(given, Path) else given
    alone = not isinstance(given, (list, tuple)) and given and os.path.exists(str(given))  # a list may be too long
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
            other = f"'{strangers[0]}' is no model: neither a checkpoint, a .pt file, nor exported from one"
            raise UserError(folder_instead(strangers[0]) or other)
        models += matching
    if not models:
        raise UserError("no model given; say model=best.pt, or several joined by commas")
    return once(models)


def _without_stages(files: list[str]) -> list[str]:
    """Without amplifiers, their stages, and states to resume from: they lie beside what a pattern is meant for."""
    others = [file for file in files if _NO_DETECTOR.fullmatch(Path(file).name)]
    for file in files:
        with suppress(Exception):  # whatever reading a broken args.yaml raises
            others += [file] * is_stage_folder(Path(file).absolute().parent.parent)
    if others:
        LOGGER.info(f"left out, amplifiers or of their training, and no detectors: {', '.join(once(others))}")
    return [file for file in files if file not in others]


def once(models: list[str]) -> list[str]:
    """Without files that were named before, in whatever spelling."""
    first = {}
    for model in models:
        first.setdefault(os.path.abspath(model), model)
    return list(first.values())


def names_of(models: list[str]) -> list[str]:
    """Shortest names that tell the models apart: the run's folder for best.pt and its like, else the file.

    Where two are called alike, all that are called so, whatever their seed, have as many of the folders above before
    their names as tell them apart, or else are called by their paths.
    """
    paths = [Path(model) for model in models]
    names = [_short(path)[1] for path in paths]
    counts, kinds = Counter(names), [seedless(name) for name in names]
    alike = {kind for name, kind in zip(names, kinds, strict=True) if counts[name] > 1}
    for kind in alike:
        places = [i for i, other in enumerate(kinds) if other == kind]
        for i, name in zip(places, _longer([paths[i] for i in places]), strict=True):
            names[i] = name
    counts = Counter(names)
    return [name if counts[name] == 1 else model for name, model in zip(names, models, strict=True)]


def _short(path: Path) -> tuple[Path, str]:
    """The folder that holds a run or a file, and what that is called there."""
    end = path.suffix if path.stem in ("best", "last") else f"/{path.name}"  # such as best_int8.onnx
    if path.parent.name == "weights" and len(path.parts) > 2:
        return path.parents[2], path.parts[-3] + end * (path.suffix != ".pt")
    return path.parent, path.name


def _longer(paths: list[Path]) -> list[str]:
    """Names with as few folders before them as make them different; files of one run are called by their paths."""
    short = [_short(path) for path in paths]
    for depth in range(1, max(len(folder.parts) for folder, _ in short) + 1):
        names = [str(Path(*folder.parts[-depth:], name)) for folder, name in short]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]
