"""What single settings change: the table of ``docs/recipes.md``, made from the rows of ``accuracy.py``.

    python benchmarks/variants.py

Reads ``results/*.csv`` and sets every distilled run beside the one with default settings that has its student, data,
size, epochs, recipe, teacher and seed. Where weights that fade, today's default, were not run, the base is the one
whose weights stay ("constant").
"""

from __future__ import annotations

import json

import pandas as pd
import yaml
from gains import OURS, RESULTS, ROOT, SETTING, mean, read, student, weights, with_table

MARKS = ("<!-- made by benchmarks/variants.py -->", "<!-- until here -->")
PAGE = ROOT / "docs/recipes.md"
DEFAULTS = yaml.safe_load((ROOT / "cfg/ds2d2.yaml").read_text()) | {"distill_final": 1}  # of rows that do not name it
TERMS = ("ex_low", "ex_high", "im_full", "im_high")


def main() -> None:
    """Write the table."""
    PAGE.write_text(with_table(PAGE.read_text(), table(read(RESULTS)), MARKS))


def table(rows: pd.DataFrame) -> str:
    """Return the table in Markdown: AP50 in points, means over the seeds that variant and base have in common."""
    head = (
        "data",
        "student",
        "px",
        "epochs",
        "settings",
        "plain",
        "DS2D2",
        "with them",
        "difference, by seed",
        "in AP",
    )
    lines = [f"| {' | '.join(head)} |", "| --- | --- | ---: | ---: | --- | ---: | ---: | ---: | --- | ---: |"]
    for _, group in _beside_their_like(rows).groupby(SETTING, sort=False):
        plain = group[group.arm == "plain"].set_index("seed")
        taught = group[group.settings.str.contains('"teacher"')]
        for _, runs in taught.groupby("teacher", sort=False):
            lines += _of_one_teacher(runs, plain)
    return "\n".join(lines)


def _beside_their_like(rows: pd.DataFrame) -> pd.DataFrame:
    """Put runs that inherit beside those of the same student that start from weights of its own, if there are any."""
    rows, others = rows.copy(), [name for name in SETTING if name != "student"]
    inherits = rows.settings.str.contains('"inherit": true')
    for number, row in rows[inherits].iterrows():
        alike = (rows[others] == row[others]).all(axis=1) & (rows.teacher == row.teacher) & ~inherits
        names = rows.student[alike & rows.student.str.startswith(f"{row.student} from ")]
        if len(names):
            rows.loc[number, "student"] = names.iloc[0]
    return rows


def _of_one_teacher(runs: pd.DataFrame, plain: pd.DataFrame) -> list[str]:
    sets = {text: part.set_index("seed") for text, part in runs.groupby("settings", sort=False)}
    bases = [text for text, part in sets.items() if set(part.arm) <= set(OURS)]
    if not bases:
        return []
    base, lines = min(bases, key=lambda text: _settings(text)["distill_final"]), []
    for text, part in sets.items():
        if text != base:
            lines += _line(part, sets[base], changed(text, base), plain)
    return lines


def _line(part: pd.DataFrame, base: pd.DataFrame, settings: str, plain: pd.DataFrame) -> list[str]:
    common = part.index.intersection(base.index)
    if not len(common):
        return []
    part, base, first = part.loc[common], base.loc[common], part.iloc[0]
    gaps = part.ap50 - base.ap50
    by_seed = _gap(gaps.mean()) + (f" ({', '.join(map(_gap, gaps))})" if len(gaps) > 1 else "")
    cells = [first["data"], student(first.student), str(first.imgsz), f"{first.epochs:.0f}", f"`{settings}`"]
    cells += [mean(plain[plain.index.isin(common)]), mean(base) + weights(base.iloc[0]), mean(part), by_seed]
    return ["| " + " | ".join([*cells, _gap((part.ap - base.ap).mean())]) + " |"]


def _gap(points: float) -> str:
    return f"{round(points, 1) + 0.0:+.1f}"  # no "-0.0"


def changed(settings: str, base: str) -> str:
    """Return in which settings that matter there a run differs from its base, as a command has them."""
    ours, theirs = _settings(settings), _settings(base)
    names = [name for name in ours if ours[name] != theirs[name]]
    if not any(ours[name] for name in TERMS):
        names = [name for name in names if name != "distill_final"]
    if ours["amplifier"] == "alongside" or not ours["im_high"]:
        names = [name for name in names if name != "amplifier_epochs"]
    return " ".join(f"{name}={ours[name]}" for name in names)


def _settings(text: str) -> dict:
    """Return all settings of a run, in the order of the settings' file; numbers alike whether 1 or 1.0."""
    given = DEFAULTS | json.loads(text)
    return {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in given.items()}


if __name__ == "__main__":
    main()
