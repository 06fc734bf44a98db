"""Runs of one recipe that differ by their seed: which they are, their mean and spread, and differences seed by seed."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

# student_s0, student-seed2, a folder s3; benchmarks/accuracy.py has eight digits of the run behind it
_SEED = re.compile(r"(?:^|[-_. /\\])(?:s|seed[-_=]?)(?P<seed>\d+)(?P<run>[-_][0-9a-f]{8})?$", re.I)
_ENDING = re.compile(r"\.(pt|onnx|torchscript|engine|tflite|pb|mlpackage|mnn|xml)$", re.I)
# Ultralytics' own names: best.pt, best_int8.onnx, best_openvino_model
_FORMATS = "openvino|saved|web|paddle|ncnn|imx|rknn|executorch|axelera|deepx|hailo|ascend|xilinx"
_GENERIC = re.compile(
    rf"(best|last|weights|epoch\d+)(_int8|_w8a\d+)?((_edgetpu|_qnn)?(\.\w+)?|_({_FORMATS})_model)", re.I
)


@dataclass(frozen=True)
class Group:
    """Models of one recipe.

    `name`: what they are called together, no two groups alike; `models`: their names; `seeds`: the seed of each, None
    where its name has none; `recipe`: the name without folders, seed and the file's `ending`.
    """

    name: str
    models: tuple[str, ...]
    seeds: tuple[int | None, ...]
    recipe: str
    ending: str = ""

    def by_seed(self) -> dict[int, str]:
        """Names by seed, for those that have one."""
        return {s: m for s, m in zip(self.seeds, self.models, strict=True) if s is not None}


def groups(names: Sequence[str], paths: Sequence[str | Path] | None = None) -> tuple[Group, ...]:
    """Names that differ by nothing but the seed at their end, together; each other name is a group of its own.

    Args:
        names: What the models are called.
        paths: Their files. Where a name is a seed alone (``plain/seed0/weights/best.pt``), the folder above says what
            the recipe is called.
    """
    runs = [_Run.of(str(name), path) for name, path in zip(names, paths or names, strict=True)]
    # The same seed twice under one name: the recipes differ by what stands behind the seed
    times = Counter((run.stem, run.ending, run.seed) for run in runs)
    recipes = [(r.stem, r.ending, r.run if times[r.stem, r.ending, r.seed] > 1 else "") for r in runs]
    # And still: these are files of one run, best.pt and last.pt
    times = Counter((recipe, run.seed) for recipe, run in zip(recipes, runs, strict=True))
    twice = {recipe for (recipe, _), count in times.items() if count > 1}
    members: dict[tuple, list[int]] = {}
    for i, (recipe, run) in enumerate(zip(recipes, runs, strict=True)):
        own = (*recipe, run.file if recipe in twice else "")
        members.setdefault(own if run.seed is not None else (i,), []).append(i)
    taken, found = {str(name) for name in names}, []
    for places in members.values():
        run, models = runs[places[0]], tuple(str(names[i]) for i in places)
        titles = (run.stem, run.stem + run.ending, f"{run.stem}_s*{run.ending}", ", ".join(models))
        title = models[0] if len(models) == 1 else next(title for title in titles if title not in taken)
        taken.add(title)
        seeds = tuple(runs[i].seed for i in places)
        found.append(Group(title, models, seeds, Path(run.stem).name, run.ending))
    return tuple(found)


def seedless(name: str) -> str:
    """A name without the seed at its end and what stands behind it."""
    bare = _ENDING.sub("", name)
    match = _SEED.search(bare)
    return bare[: match.start()] if match else bare


@dataclass(frozen=True)
class _Run:
    """A name taken apart: without seed and ending, the seed (None: it has none), digits of the run, the ending, and
    what the file of such a run is called."""

    stem: str
    seed: int | None
    run: str
    ending: str
    file: str

    @classmethod
    def of(cls, name: str, path: str | Path) -> _Run:
        above = [part for part in Path(path).parts if not _GENERIC.fullmatch(part)] or [str(path)]
        parts = list(Path(name).parts)
        while parts and _GENERIC.fullmatch(parts[-1]):
            parts.pop()
        name = str(Path(*parts)) if parts else above[-1]
        bare = _ENDING.sub("", name)
        ending, match = name[len(bare) :], _SEED.search(bare)
        if match is None:
            return cls(bare, None, "", ending, Path(path).name)
        folders = [part for part in above if not _SEED.fullmatch(_ENDING.sub("", part))]
        stem = bare[: match.start()] or (folders or ["seeds"])[-1]
        return cls(stem, int(match["seed"]), match["run"] or "", ending, Path(path).name)


def figure(row, name: str) -> float | None:
    """A figure of a rating, or of a mapping such as its ``as_dict()``; None where it is unknown (None, nan, empty)."""
    value = row.get(name) if isinstance(row, Mapping) else getattr(row, name, None)
    return None if value is None or value == "" or math.isnan(float(value)) else float(value)


@dataclass(frozen=True)
class Summary:
    """Known values in points, their mean (None without any) and sample standard deviation (None below two)."""

    values: tuple[float, ...]
    mean: float | None
    sd: float | None

    def __str__(self) -> str:
        if self.mean is None:
            return "-"
        return f"{self.mean:.1f}" + ("" if self.sd is None else f" ± {self.sd:.1f}")


def summarise(values: Iterable[float | None]) -> Summary:
    """Mean and spread of the values that are known."""
    known = tuple(float(v) for v in values if v is not None and not math.isnan(v))
    sd = statistics.stdev(known) if len(known) > 1 else None
    return Summary(known, statistics.fmean(known) if known else None, sd)


@dataclass(frozen=True)
class Difference:
    """One figure of a recipe and of another, over their seeds, in points.

    `difference` is that of the means; `seeds` are those that both have, `paired` the difference in each of them.
    """

    figure: str
    student: Summary
    baseline: Summary
    difference: float | None
    seeds: tuple[int, ...]
    paired: Summary

    def as_dict(self) -> dict:
        """Plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """``+1.3 (seed 0: +1.5, seed 1: +1.1; +1.3 ± 0.3)``."""
        if self.difference is None:
            return "-"
        if not self.seeds:
            return f"{self.difference:+.1f}"
        each = ", ".join(f"seed {s}: {v:+.1f}" for s, v in zip(self.seeds, self.paired.values, strict=True))
        spread = f"; {self.paired.mean:+.1f} ± {self.paired.sd:.1f}" if self.paired.sd is not None else ""
        return f"{self.difference:+.1f} ({each}{spread})"


def difference(student: Group, baseline: Group, rows: Mapping, name: str = "ap") -> Difference:
    """A figure of one group minus that of another; `rows` are ratings (or their ``as_dict()``) by model name."""
    own, other = ({m: figure(rows[m], name) for m in group.models} for group in (student, baseline))
    a, b = summarise(own.values()), summarise(other.values())
    ours, theirs = student.by_seed(), baseline.by_seed()
    pairs = {s: (own[ours[s]], other[theirs[s]]) for s in sorted(ours.keys() & theirs.keys())}
    known = {s: x - y for s, (x, y) in pairs.items() if x is not None and y is not None}
    gap = None if a.mean is None or b.mean is None else a.mean - b.mean
    return Difference(name, a, b, gap, tuple(known), summarise(known.values()))
