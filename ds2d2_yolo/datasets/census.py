"""What a conversion found: images and objects by split, class and size, and what was dropped and why."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pandas as pd

from ds2d2_yolo.datasets.objects import Plan

SIZES = ("small", "medium", "large")  # below 32^2, below 96^2 pixels of the original image, above (COCO)

_ORDER = {"train": 0, "val": 1, "test": 2}
_COLOURS = {"small (< 32² px)": "#d1495b", "medium (< 96² px)": "#edae49", "large": "#30638e"}


class Census:
    """Counts of a conversion.

    Attributes:
        images: Image files written (tiles, where images are cut).
        objects: Table of objects in the source's images by class: a column a split and a size.
        splits: Table of splits: source images, files and boxes written.
        problems: Table of reason, number, and the images concerned.
    """

    def __init__(self, plan: Plan, records: list[dict]):
        self.kind = plan.kind
        self.images = sum(r["images"] for r in records)
        splits = sorted({r["split"] for r in records}, key=lambda s: (_ORDER.get(s, 3), s))
        counts, by_split = Counter(), defaultdict(Counter)
        for r in records:
            by_split[r["split"]].update(images=not r.get("skipped"), files=r["images"], boxes=r["boxes"])
            for kind, size, number in r["counts"]:
                counts[kind, r["split"]] += number
                counts[kind, SIZES[size]] += number
        columns = [*splits, *SIZES]
        rows = {name: [counts[i, c] for c in columns] for i, name in enumerate(plan.names)}
        self.objects = pd.DataFrame.from_dict(rows, orient="index", columns=columns, dtype=int)
        table = [[by_split[s][key] for key in ("images", "files", "boxes")] for s in splits]
        self.splits = pd.DataFrame(table, splits, ["images", "files", "boxes"], dtype=int)
        found = [(reason, len(names), names) for reason, names in plan.problems.items() if names]
        per_reason = defaultdict(dict)
        for r in records:
            for reason, number in r["problems"].items():
                per_reason[reason][f"{r['split']}/{r['image']}"] = number
        found += [(reason, sum(names.values()), list(names)) for reason, names in per_reason.items()]
        self.problems = pd.DataFrame(sorted(found, key=lambda row: -row[1]), columns=["reason", "number", "where"])

    def __str__(self) -> str:
        """The tables as text."""
        total = self.objects.sum().rename("all").to_frame().T
        parts = [self.splits.to_string(), pd.concat([self.objects, total]).to_string()]
        for _, (reason, number, where) in self.problems.iterrows():
            some = ", ".join(map(str, where[:3])) + (", ..." if len(where) > 3 else "")
            parts.append(f"{number} x {reason}: {some}")
        text = "\n\n".join(parts[:2]) + "\n" + "".join(f"\n{line}" for line in parts[2:])
        return text.encode(errors="backslashreplace").decode()  # names of files may be no text

    def save(self, folder: Path) -> None:
        """Write ``census.csv`` and ``problems.csv``."""
        self.objects.to_csv(folder / "census.csv", index_label="class")
        rows = [(reason, name) for _, (reason, _, where) in self.problems.iterrows() for name in where]
        pd.DataFrame(rows, columns=["reason", "where"]).to_csv(
            folder / "problems.csv", index=False, errors="backslashreplace"
        )

    def draw(self, path: Path) -> None:
        """Draw objects by class, the sizes stacked, most frequent first."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        table = self.objects.loc[self.objects[list(SIZES)].sum(axis=1).sort_values().index]
        figure = Figure(figsize=(8, 1.4 + 0.28 * len(table)), layout="constrained")
        FigureCanvasAgg(figure)
        axes, rows, left = figure.subplots(), np.arange(len(table)), np.zeros(len(table))
        for size, (label, colour) in zip(SIZES, _COLOURS.items(), strict=True):
            axes.barh(rows, table[size], left=left, color=colour, label=label)
            left += table[size].to_numpy()
        for i, number in enumerate(left):
            axes.annotate(f" {int(number):,}", (number, i), va="center", fontsize=8)
        axes.set_yticks(rows, table.index, parse_math=False)  # a class's name may hold $
        axes.margins(x=0.12)
        axes.set_xlabel("objects")
        objects, images = int(left.sum()), int(self.splits["images"].sum())
        counted = f"{objects:,} object{'s' * (objects != 1)} in {images:,} image{'s' * (images != 1)}"
        axes.set_title(f"{self.kind}: {counted}")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower right")
        figure.savefig(path, dpi=120)
