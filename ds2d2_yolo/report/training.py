"""Training curves of several runs laid over each other.

python val.py curves=runs/a,runs/b
"""

from __future__ import annotations

import csv
import glob
import os
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from ds2d2_yolo.errors import UserError
from ds2d2_yolo.report.bundle import is_training_run
from ds2d2_yolo.report.pictures import picture_folder, write_picture
from ds2d2_yolo.stages import is_stage_folder

PLACE = ("save_dir", "project", "name")
MAP50, MAP = "metrics/mAP50(B)", "metrics/mAP50-95(B)"
TERMS = ("ex_low", "ex_high", "im_full", "im_high")  # as the trainer writes them
_MEASURES = {
    "train/detection": "Detection loss, training",
    "val/detection": "Detection loss, validation",
    MAP50: "mAP50",
    MAP: "mAP50-95",
    "lr": "Learning rate",
}
_DISTILLATION = {f"train/{name}": f"Term {name}" for name in TERMS}
_DISTILLATION |= {f"share/{name}": f"Gradient share, {name}" for name in (*TERMS, "detection")}
_COLUMNS = 5
_STYLES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Run:
    """A run's `results.csv`: `epoch` (N,) and every other column (N,) by name, nan where nothing was measured.

    Besides the file's own columns: `train/detection` and `val/detection`, the sums of the detection losses' parts, and
    `lr`, the learning rate of the first parameter group.
    """

    name: str
    epoch: np.ndarray
    columns: dict[str, np.ndarray]

    def best(self, column: str) -> tuple[float, int] | None:
        """Highest value of a column and its (first) epoch, None where nothing was measured."""
        values = self.columns.get(column)
        if values is None or np.isnan(values).all():
            return None
        place = int(np.nanargmax(values))
        return float(values[place]), int(self.epoch[place])


def curves(settings: dict) -> Path:
    """Draw the training curves of one or more runs, say where each was best, and return the picture's path.

    `settings`: `curves` (run folders, as a list or joined by commas) and where the picture goes: `save_dir`, or
    `project` and `name` (default: runs/curves). Runs may differ in length and in columns. Raises UserError for an
    unknown setting, a folder that is no run and a table that cannot be read.
    """
    given = {k: v for k, v in settings.items() if v not in (None, "")}
    if unknown := sorted(set(given) - {"curves", *PLACE}):
        raise UserError(
            f"curves= goes with {', '.join(f'{k}=' for k in PLACE)} alone, not with "
            f"{', '.join(f'{k}=' for k in unknown)}"
        )
    folders = _folders(given["curves"])
    runs = [read(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]
    path = draw(runs, picture_folder(given, "curves") / "curves.png")
    print(f"\n{summary(runs)}\n\npicture  {path}")
    return path


def _folders(listed) -> list[Path]:
    """The runs, each once; * and ? match folders with a results.csv but amplifiers' stages; a path may have commas."""
    alone = not isinstance(listed, (list, tuple)) and os.path.exists(str(listed))  # a list may be too long for a path
    found: list[Path] = []
    for part in [listed] if alone else listed if isinstance(listed, (list, tuple)) else str(listed).split(","):
        name = str(part).strip()
        matching = [Path(name)] if name else []
        if glob.has_magic(name) and not os.path.exists(name):
            matching = [p for p in map(Path, sorted(glob.glob(name, recursive=True))) if _is_student(p)]
            if not matching:
                raise UserError(f"no run matches '{name}': nothing that it names holds a training run's results.csv")
        found += matching
    if not found:
        raise UserError("no run given; say curves=runs/a,runs/b")
    first: dict[str, Path] = {}
    for path in found:
        first.setdefault(os.path.abspath(_folder_of(path)), path)
    return list(first.values())


def _folder_of(path: Path) -> Path:
    return path.parent if path.name == "results.csv" else path


def _is_student(path: Path) -> bool:
    folder = _folder_of(path)
    if not (folder / "results.csv").is_file() or not is_training_run(folder):  # a report has such a table, too
        return False
    with suppress(Exception):  # whatever reading a broken args.yaml raises
        return not is_stage_folder(folder)
    return True


def read(folder: str | Path, name: str | None = None) -> Run:
    """Read the `results.csv` of a run's folder (or a file of that kind); `name` is what the run is called.

    A last row that was cut short, as of a run that was killed or is being written, is left out, and that is said.
    Raises UserError where there is no such table, or none with a whole row.
    """
    folder = Path(folder)
    file = folder if folder.is_file() else folder / "results.csv"
    if not folder.exists():
        raise UserError(f"there is no run '{folder}'")
    if not file.is_file():
        raise UserError(f"'{folder}' holds no results.csv, so it is no training run, or one without a finished epoch")
    try:
        header, *rows = [row for row in csv.reader(file.read_text(encoding="utf-8-sig").splitlines()) if row] or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"'{file}' is no table of a training run: {error}") from error
    header = [column.strip() for column in header]
    if "epoch" not in header:
        raise UserError(f"'{file}' is no table of a training run: it has no column 'epoch'")
    table = [_numbers(file, number, row, len(header)) for number, row in enumerate(rows, 2)]
    if table and table[-1] is None:
        table.pop()
        print(f"'{file}': the last row is cut short and left out")
    if None in table:
        raise UserError(f"'{file}' is damaged: line {table.index(None) + 2} is not a row of {len(header)} numbers")
    if not table:
        raise UserError(f"'{file}' holds no finished epoch")
    columns = dict(zip(header, np.array(table).T, strict=True))
    return Run(name or folder.name, columns.pop("epoch"), _derived(columns))


def summary(runs: list[Run]) -> str:
    """A table of where each run is best."""
    lines = [["run", "epochs", "best mAP50", "best mAP50-95"]]
    for run in runs:
        best = [run.best(column) for column in (MAP50, MAP)]
        said = ["-" if b is None else f"{100 * b[0]:.1f} (epoch {b[1]})" for b in best]
        lines.append([run.name, str(len(run.epoch)), *said])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def draw(runs: list[Run], path: str | Path) -> Path:
    """Draw the runs over each other as a PNG file and return its path; its folder is made.

    Four terms and gradient shares are drawn where a run has them. Raises UserError where the file cannot be written.
    """
    panels = [column for column in _MEASURES if _measured(runs, column)]
    distilled = [column for column in _DISTILLATION if _measured(runs, column)]
    rows = -(-(len(panels) or 1) // _COLUMNS)
    grid = [*panels, *[None] * (rows * _COLUMNS - len(panels))]
    for kind in ("train", "share"):
        if row := [column for column in distilled if column.startswith(f"{kind}/")]:
            grid += [*row, *[None] * (_COLUMNS - len(row))]
    rows, legend = len(grid) // _COLUMNS, 0.45 + 0.22 * -(-len(runs) // 4)
    height = 2.7 * rows
    figure = Figure(figsize=(3.5 * _COLUMNS, height + legend), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[height, legend])
    axes = above.subplots(rows, _COLUMNS, squeeze=False).ravel()
    looks = [_look(i, len(runs)) for i in range(len(runs))]
    last = max(run.epoch.max() for run in runs)
    for axis, column in zip(axes, grid, strict=True):
        if column is None:
            axis.axis("off")
        else:
            _draw_panel(axis, column, runs, looks)
            axis.set_xlim(min(0, *(run.epoch.min() for run in runs)), 1.03 * last)
    lines = [axes[0].plot([], [], **look)[0] for look in looks]
    names = [f" {run.name}" for run in runs]  # matplotlib leaves out what begins with an underscore
    shown = below.legend(lines, names, loc="center", ncols=min(4, len(runs)), frameon=False)
    for text in shown.get_texts():
        text.set_parse_math(False)
    return write_picture(figure, path)


def _draw_panel(axis, column: str, runs: list[Run], looks: list[dict]) -> None:
    axis.set_title({**_MEASURES, **_DISTILLATION}[column], fontsize=10)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    axis.set_xlabel("epoch", fontsize=8)
    for run, look in zip(runs, looks, strict=True):
        if not _measured([run], column):
            continue
        values = run.columns[column]
        there = ~np.isnan(values)
        axis.plot(run.epoch[there], values[there], marker="o" if there.sum() < 3 else "", markersize=4, **look)
        if column in (MAP50, MAP) and (best := run.best(column)):
            axis.plot(best[1], best[0], marker="*", markersize=9, color=look["color"])
    every = np.concatenate([run.columns[column] for run in runs if column in run.columns])
    top = max(every[np.isfinite(every)], default=0)
    axis.set_ylim(0, 1.07 * top if top > 0 else None)  # room for a mark at the top
    axis.xaxis.get_major_locator().set_params(integer=True)


def _look(place: int, count: int) -> dict:
    colours = colormaps["tab10"]
    colour = colours(place) if count <= 10 else colormaps["turbo"](place / (count - 1) * 0.9 + 0.05)
    width = 1.4 + 1.5 * (min(count, 3) - 1 - min(place, 2))  # where curves are the same, none hides the others
    return {"color": colour, "linestyle": _STYLES[place % len(_STYLES)] if count > 3 else "-", "linewidth": width}


def _measured(runs: list[Run], column: str) -> bool:
    """Whether there is something to see: a term that is switched off is not, and an AP of 0 is."""
    values = [run.columns[column] for run in runs if column in run.columns]
    if column in (MAP50, MAP):
        return any((~np.isnan(v)).any() for v in values)
    return any((np.nan_to_num(v) != 0).any() for v in values)


def _numbers(file: Path, number: int, row: list[str], width: int) -> list[float] | None:
    try:
        values = [float(v) if v.strip() else np.nan for v in row]
    except ValueError:
        return None
    return values if len(values) == width else None


def _derived(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Add the sums, and blank what Ultralytics writes as 0 for epochs that were not validated."""
    validated = [c for c in columns if c.startswith(("val/", "metrics/"))]
    if validated:
        skipped = np.all([np.nan_to_num(columns[c]) == 0 for c in validated], axis=0)
        columns |= {c: np.where(skipped, np.nan, columns[c]) for c in validated}
    for kind in ("train", "val"):
        every = [c for c in columns if c.startswith(f"{kind}/") and c.endswith("_loss")]
        parts = [columns[c] for c in every if c != f"{kind}/dis_loss"]  # of Ultralytics' own distillation
        if parts:
            columns[f"{kind}/detection"] = np.sum(parts, axis=0)
    rates = [c for c in columns if c.startswith("lr/")]
    return {**columns, "lr": columns[rates[0]]} if rates else columns


def _names(folders: list[Path]) -> list[str]:
    """Shortest names that tell the runs apart."""
    short = [_folder_of(f).resolve().name for f in folders]
    counts = Counter(short)
    return [name if counts[name] == 1 else str(f) for name, f in zip(short, folders, strict=True)]
