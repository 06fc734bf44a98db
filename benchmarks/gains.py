"""The README's table and plot of what distillation gained, made from the rows of ``accuracy.py``.

    python benchmarks/gains.py

Reads ``results/*.csv``, writes the table between the marks in ``README.md`` and the plot to ``docs/images/gains.png``;
the same table with the runs whose weights do not fade, the default of their time, and with those whose plain student
is held back goes to ``results/README.md``.
Only settings with a plain and a distilled run of the same seed, student, data, size, epochs and recipe are shown.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"
MARKS = ("<!-- made by benchmarks/gains.py -->", "<!-- until here -->")
SETTING = ["data", "student", "imgsz", "epochs", "recipe"]
ARMS = {"plain": ("plain", "#7f7f7f"), "distill_model": ("distill_model", "#d9822b"), "ds2d2": ("DS2D2", "#1f6fb4")}
OURS = ("ds2d2", "fade")  # arms that stand in DS2D2's place, a row for each settings
UNDER_SET = "-narrow-128"  # learns from 128 of an image's regions: plain training with the usual 512 gets almost as far


def main() -> None:
    """Write tables and plot."""
    shown = settings(read(RESULTS))
    for path, part in ((ROOT / "README.md", today(shown)), (RESULTS / "README.md", shown)):
        path.write_text(with_table(path.read_text(), table(part)))
    draw(today(shown), ROOT / "docs/images/gains.png")


def read(folder: Path) -> pd.DataFrame:
    """Return the rows of all accuracy benchmarks, in the order of their files' names."""
    tables = [pd.read_csv(path, dtype={"run": str, "teacher": str}) for path in sorted(folder.glob("*.csv"))]
    return pd.concat([t for t in tables if {"arm", *SETTING} <= set(t.columns)], ignore_index=True)


def settings(rows: pd.DataFrame) -> list[dict[str, pd.DataFrame]]:
    """Return every setting's arms, indexed by seed, plain and DS2D2 with the seeds that both have, and its teacher."""
    found = []
    for _, group in rows.groupby(SETTING, sort=False):
        arms = {name: group[group.arm == name].set_index("seed") for name in ARMS}
        every = group[group.arm.isin(OURS)].sort_values("arm", kind="stable").set_index("seed")
        for (teacher, _), ours in every.groupby(["teacher", "settings"], sort=False):  # no other seeds
            common = arms["plain"].index.intersection(ours.index)
            if len(common):
                other = arms["distill_model"]
                other = other[(other.teacher == teacher) & other.index.isin(common)]
                theirs = {"plain": arms["plain"].loc[common], "distill_model": other}
                if any(rows.index.has_duplicates for rows in (*theirs.values(), ours)):
                    raise ValueError(f"one seed twice in {group.iloc[0][SETTING].to_dict()}")
                found.append({**theirs, "ds2d2": ours.loc[common], "teacher": taught(rows, ours.iloc[0])})
    return found


def taught(rows: pd.DataFrame, run: pd.Series) -> pd.DataFrame:
    """Return the rows of the teacher of a run, as it was rated there."""
    same = (rows.teacher == run.teacher) & (rows.imgsz == run.imgsz) & (rows["data"] == run["data"])
    return rows[(rows.arm == "teacher") & same]


def today(shown: list[dict[str, pd.DataFrame]]) -> list[dict[str, pd.DataFrame]]:
    """Return the settings whose weights fade, as they do by default, and whose plain student has its due."""
    ours = ((arms, arms["ds2d2"].iloc[0]) for arms in shown)
    return [arms for arms, row in ours if not weights(row) and not student(row.student).endswith(UNDER_SET)]


def table(shown: list[dict[str, pd.DataFrame]]) -> str:
    """Return the table in Markdown: AP50 in points, the mean over seeds."""
    lines = [
        "| data | student | px | epochs | teacher | plain | `distill_model` | DS2D2 | gain, by seed | of the lead |"
        " AP of small objects |"
    ]
    lines += ["| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: | --- |"]
    for arms in shown:
        ours, plain, teacher = arms["ds2d2"], arms["plain"], arms["teacher"]
        first, gains = ours.iloc[0], ours.ap50 - plain.ap50
        cells = [first["data"], student(first.student), str(first.imgsz), f"{first.epochs:.0f}", mean(teacher)]
        cells += [mean(arms[name]) for name in ARMS]
        cells[-1] += weights(first)
        cells += [
            f"{gains.mean():+.1f} ({', '.join(f'{g:+.1f}' for g in gains)})"
            if len(gains) > 1
            else f"{gains.mean():+.1f}"
        ]
        cells += [recovered(plain, ours, teacher)]
        cells += [f"{mean(plain, 'ap_small')} to {mean(ours, 'ap_small')}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def weights(row: pd.Series) -> str:
    """Return what to say of weights that stay as they are, the default before rows named ``distill_final``."""
    return ", constant" if json.loads(row.settings).get("distill_final", 1) else ""


def student(name: str) -> str:
    """Return a student's name without what is only a path's."""
    return name.removeprefix("benchmarks/models/").replace(".yaml", "")


def mean(rows: pd.DataFrame, metric: str = "ap50") -> str:
    """Return the mean over seeds, empty where there is no run."""
    return f"{rows[metric].mean():.1f}" if len(rows) else ""


def recovered(plain: pd.DataFrame, ours: pd.DataFrame, teacher: pd.DataFrame) -> str:
    """Return the gain as a part of the teacher's lead over the plain student, empty where there is none."""
    lead = teacher.ap50.mean() - plain.ap50.mean() if len(teacher) else 0
    return f"{(ours.ap50.mean() - plain.ap50.mean()) / lead:.0%}" if lead > 0 else ""


def with_table(text: str, table: str, marks: tuple[str, str] = MARKS) -> str:
    """Return a page with the table between its marks."""
    start, end = map(re.escape, marks)
    return re.sub(f"(?<={start}\n\n).*(?=\n\n{end})", lambda _: table, text, flags=re.DOTALL)


def draw(shown: list[dict[str, pd.DataFrame]], path: Path) -> None:
    """Draw every run as a dot and the mean of every arm as a line."""
    figure, axes = plt.subplots(figsize=(8, 0.7 + 0.62 * len(shown)), layout="constrained")
    for place, arms in enumerate(shown):
        for shift, (name, (label, colour)) in zip((-0.22, 0, 0.22), ARMS.items(), strict=True):
            points = arms[name].ap50
            if len(points):
                axes.plot(points, [place + shift] * len(points), "o", ms=5, alpha=0.6, color=colour, mec="none")
                axes.plot(
                    [points.mean()] * 2, [place + shift - 0.1, place + shift + 0.1], lw=3, color=colour, label=label
                )
    labels = [arms["ds2d2"].iloc[0] for arms in shown]
    names = [f"{r['data']}, {r.imgsz} px, {r.epochs:.0f} epochs\n{student(r.student)}" for r in labels]
    by = [f"{name}, teacher {mean(arms['teacher'])}" for name, arms in zip(names, shown, strict=True)]
    names = [name if names.count(name) == 1 else longer for name, longer in zip(names, by, strict=True)]
    axes.set_yticks(range(len(shown)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("AP50 of the student, points (a dot a seed, a bar their mean)")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    entries = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.legend(entries.values(), entries.keys(), frameon=False, loc="lower right", fontsize=9)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
