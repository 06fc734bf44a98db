"""Detectors side by side: one row each, with the gap to the teacher, as text, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ds2d2_yolo.errors import UserError

# What a column shows: heading, field of the row, unit of one, decimals.
COLUMNS = (
    ("parameters (M)", "parameters", 1e6, 2),
    ("AP50", "ap50", 1, 1),
    ("AP50-95", "ap", 1, 1),
    ("APsmall", "ap_small", 1, 1),
)
UNKNOWN = "-"


@dataclass(frozen=True)
class Comparison:
    """Cells of a table, `None` where nothing is known: (value, gap to the teacher) for each column of each row.

    AP is in points (0 to 100), parameters in millions. `str(comparison)` is the table as plain text.
    """

    names: tuple[str, ...]
    cells: tuple[tuple[tuple[float | None, float | None], ...], ...]
    teacher: str | None = None

    def __str__(self) -> str:
        head, *rows = self._texts()
        widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
        lines = [head, ["-" * width for width in widths], *rows]
        return "\n".join(
            "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
            for row in lines
        )

    def markdown(self) -> str:
        """The table in GitHub's Markdown."""
        head, *rows = ([text.replace("|", "\\|") for text in row] for row in self._texts())
        lines = [head, ["---"] + ["---:"] * len(COLUMNS), *rows]
        return "".join(f"| {' | '.join(row)} |\n" for row in lines)

    def csv(self) -> str:
        """The table as CSV: value and gap in columns of their own, unrounded, empty where unknown."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        fields = [field for _, field, _, _ in COLUMNS]
        writer.writerow(["model", *(name for field in fields for name in (field, f"{field}_gap"))])
        for name, row in zip(self.names, self.cells, strict=True):
            writer.writerow([name, *("" if v is None else f"{v:.6g}" for cell in row for v in cell)])
        return text.getvalue()

    def write(self, folder, stem="comparison") -> list[Path]:
        """Writes `stem`.csv and `stem`.md into the folder and returns their paths."""
        folder = Path(folder)
        files = {folder / f"{stem}.csv": self.csv(), folder / f"{stem}.md": self.markdown()}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path, text in files.items():
                path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write the comparison to '{folder}' ({error.strerror or error})") from error
        return list(files)

    def _texts(self):
        yield ["model", *(heading for heading, *_ in COLUMNS)]
        for name, row in zip(self.names, self.cells, strict=True):
            texts = [_text(*cell, decimals) for cell, (*_, decimals) in zip(row, COLUMNS, strict=True)]
            yield [f"{name} (teacher)" if name == self.teacher != "teacher" else name, *texts]


def comparison(rows, teacher=None) -> Comparison:
    """Compares detectors.

    `rows`: name -> result (an `Evaluation` or a mapping) with parameters, ap50, ap and ap_small, or pairs of these;
    values that are missing, None or nan show as "-". `teacher` names the row that gaps are taken to; without it there
    are none.
    """
    rows = dict(rows)
    if teacher is not None and teacher not in rows:
        raise UserError(f"teacher '{teacher}' is none of the compared models ({', '.join(rows)})")
    values = {name: [_value(result, *column) for column in COLUMNS] for name, result in rows.items()}
    goal = values.get(teacher, [None] * len(COLUMNS))
    cells = tuple(
        tuple((v, None if name == teacher or v is None or g is None else v - g) for v, g in zip(row, goal, strict=True))
        for name, row in values.items()
    )
    return Comparison(tuple(values), cells, teacher)


def _value(result, _heading, field, unit, _decimals):
    value = result.get(field) if isinstance(result, Mapping) else getattr(result, field)
    if value is None or value == "" or math.isnan(float(value)):
        return None
    return float(value) / unit


def _text(value, gap, decimals):
    if value is None:
        return UNKNOWN
    text = f"{value:.{decimals}f}"
    return text if gap is None else f"{text} ({round(gap, decimals) + 0.0:+.{decimals}f})"
