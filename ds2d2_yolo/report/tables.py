"""Detectors side by side: one row each, with the gap to the teacher, as text, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from ds2d2_yolo.errors import UserError
from ds2d2_yolo.report.files import replace_text

UNKNOWN = "-"
GUTTER = "  "
WIDTH = 100  # where there is no terminal to ask


@dataclass(frozen=True)
class Column:
    """What a column is called (`heading`; `key` in files) and how it shows: value / `unit` with so many `decimals`
    (None: see `score`).

    Columns of one `group` stay together. `gap`: the difference to the teacher's row stands behind the value. `show`:
    "always", "known" (where a row has a value) or "never": in files only. `signed`: with a plus.
    """

    heading: str
    key: str
    decimals: int | None = 1
    unit: float = 1
    group: str = ""
    gap: bool = False
    show: str = "always"
    signed: bool = False

    def text(self, value: float | str | None, gap: float | None = None) -> str:
        """A cell of the table."""
        if value is None or isinstance(value, str):
            return UNKNOWN if value is None else _printable(value)
        if self.decimals is None:
            return score(value)
        value = round(value / self.unit, self.decimals) + 0.0  # no -0.0
        text = f"{value:{'+' * self.signed}.{self.decimals}f}"
        return text if gap is None else f"{text} ({round(gap / self.unit, self.decimals) + 0.0:+.{self.decimals}f})"


def score(value: float) -> str:
    """A score from 0 to 1 with two digits that count: short trainings have their best F1 far below 0.01."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


@dataclass(frozen=True)
class Table:
    """Rows by name, of values as they were measured: numbers, texts, None where nothing is known.

    `teacher` names the row that gaps are taken to, or several (a teacher's seeds), to whose mean; `marks` are remarks
    on rows that stand in brackets behind their name; `head` is what rows are. `str(table)` is the table as
    wide as the terminal.
    """

    columns: tuple[Column, ...]
    names: tuple[str, ...]
    values: tuple[tuple[float | str | None, ...], ...]
    teacher: str | tuple[str, ...] | None = None
    head: str = "model"
    marks: tuple[tuple[str, str], ...] = ()

    @property
    def cells(self) -> tuple[tuple[tuple[float | str | None, float | None], ...], ...]:
        """(value, gap to the teacher) for each column of each row."""
        teachers = self._teachers()
        rows = [row for name, row in zip(self.names, self.values, strict=True) if name in teachers]
        goals = [mean_of(column) for column in zip(*rows, strict=True)] or [None] * len(self.columns)
        return tuple(
            tuple((v, None if name in teachers else self._gap(i, v, goals[i])) for i, v in enumerate(row))
            for name, row in zip(self.names, self.values, strict=True)
        )

    def _teachers(self) -> tuple[str, ...]:
        return (self.teacher,) if isinstance(self.teacher, str) else self.teacher or ()

    def _gap(self, i, value, goal):
        numbers = all(isinstance(v, int | float) for v in (value, goal))
        return value - goal if self.columns[i].gap and numbers else None

    def text(self, width: int | None = None) -> str:
        """The table as plain text, in blocks of columns where it is wider than `width` characters (the terminal's)."""
        width = width or shutil.get_terminal_size((WIDTH, 24)).columns
        names = [self.head, *self._titles(max(width // 3, 16))]
        columns = {i: [self.columns[i].heading, *(row[i] for row in self._texts())] for i in self._shown()}
        wide = {i: max(map(len, texts)) for i, texts in columns.items()}
        first = max(map(len, names))
        blocks = list(self._blocks(wide, width - first))
        return "\n\n".join(self._block(block, names, columns, wide, len(blocks) > 1) for block in blocks)

    __str__ = text

    def _block(self, block, names, columns, wide, titled) -> str:
        lines = []
        for row, name in enumerate(names):
            cells = [_aligned(columns[i][row], wide[i], isinstance(self._sample(i), str)) for i in block]
            lines.append(GUTTER.join([name.ljust(max(map(len, names))), *cells]).rstrip())
        lines.insert(1, GUTTER.join("-" * n for n in [max(map(len, names)), *(wide[i] for i in block)]))
        groups = ", ".join(dict.fromkeys(self.columns[i].group for i in block if self.columns[i].group))
        return "\n".join([groups, *lines] if titled and groups else lines)

    def _sample(self, i):
        return next((row[i] for row in self.values if row[i] not in (None, "")), None)

    def _blocks(self, wide, room) -> Iterator[list[int]]:
        """Columns that fit side by side; groups are torn only where one is wider than the terminal."""

        def width(block):
            return sum(wide[i] + len(GUTTER) for i in block)

        block: list[int] = []
        for _, part in groupby(wide, key=lambda i: self.columns[i].group):
            part = list(part)
            if block and width(block + part) > room:
                yield block
                block = []
            for i in part:
                if block and width([*block, i]) > room:
                    yield block
                    block = []
                block.append(i)
        yield block

    def markdown(self) -> str:
        """The table in GitHub's Markdown; one for each group of columns where there are several."""
        texts, titles = list(self._texts()), list(self._titles())
        groups = [(title, list(part)) for title, part in groupby(self._shown(), key=lambda i: self.columns[i].group)]
        parts = []
        for title, part in groups or [("", [])]:
            lines = [[self.head, *(self.columns[i].heading for i in part)]]
            lines += [[name, *(row[i] for i in part)] for name, row in zip(titles, texts, strict=True)]
            lines = [[_escaped(text) for text in line] for line in lines]
            lines.insert(1, ["---"] + ["---" if isinstance(self._sample(i), str) else "---:" for i in part])
            heading = f"**{_escaped(title)}**\n\n" if len(groups) > 1 and title else ""
            parts.append(heading + "".join(f"| {' | '.join(line)} |\n" for line in lines))
        return "\n".join(parts)

    def texts(self) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
        """Heading and rows as they are shown."""
        shown = list(self._shown())
        rows = zip(self._titles(), self._texts(), strict=True)
        head = (self.head, *(self.columns[i].heading for i in shown))
        return head, tuple((title, *(row[i] for i in shown)) for title, row in rows)

    def rows(self) -> list[dict]:
        """A mapping for each row: its name, and by key the values, followed by their gaps where there is a teacher."""
        rows = []
        for name, cells in zip(self.names, self.cells, strict=True):
            row = {self.head: name}
            for column, (value, gap) in zip(self.columns, cells, strict=True):
                row[column.key] = value
                if column.gap and self.teacher is not None:
                    row[f"{column.key}_gap"] = gap
            rows.append(row)
        return rows

    def csv(self) -> str:
        """The table as CSV: value and gap in columns of their own, unrounded, empty where unknown."""
        text, rows = io.StringIO(), self.rows()
        writer = csv.DictWriter(text, rows[0] if rows else [self.head], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def json(self) -> str:
        """`rows` as JSON, null where unknown."""
        return json.dumps(self.rows(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def write(self, folder, stem="comparison") -> list[Path]:
        """Writes `stem`.csv, `stem`.md and `stem`.json into the folder and returns their paths."""
        folder = Path(folder)
        files = {folder / f"{stem}.{kind}": getattr(self, make)() for kind, make in KINDS.items()}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path, text in files.items():
                replace_text(path, text)
        except OSError as error:
            raise UserError(f"cannot write the comparison to '{folder}' ({error.strerror or error})") from error
        return list(files)

    def _shown(self) -> Iterator[int]:
        for i, column in enumerate(self.columns):
            if column.show == "always" or (column.show == "known" and self._sample(i) is not None):
                yield i

    def _titles(self, most: int = 1000) -> Iterator[str]:
        marks = {**dict.fromkeys(self._teachers(), "teacher"), **dict(self.marks)}
        for name, short in zip(self.names, _shortened(self.names, most), strict=True):
            mark = marks.get(name)
            yield _printable(short) + (f" ({mark})" if mark and mark not in name.lower() else "")

    def _texts(self) -> Iterator[list[str]]:
        for row in self.cells:
            yield [column.text(*cell) for column, cell in zip(self.columns, row, strict=True)]


KINDS = {"csv": "csv", "md": "markdown", "json": "json"}
COLUMNS = (
    Column("parameters (M)", "parameters", 2, 1e6, gap=True),
    Column("AP50", "ap50", gap=True),
    Column("AP50-95", "ap", gap=True),
    Column("APsmall", "ap_small", gap=True),
)
Comparison = Table  # the name by which callers of `comparison` know it


def comparison(rows, teacher=None, columns: Sequence[Column] = COLUMNS) -> Table:
    """Compares detectors by a few figures.

    `rows`: name -> result (an `Evaluation`, a `Rating` or a mapping) with the columns' keys, or pairs of these; values
    that are missing, None or nan show as "-". `teacher` names the row that gaps are taken to; without it there are
    none.
    """
    rows = dict(rows)
    if teacher is not None and teacher not in rows:
        raise UserError(f"teacher '{teacher}' is none of the compared models ({', '.join(rows)})")
    values = tuple(tuple(number(get(result, column.key)) for column in columns) for result in rows.values())
    return Table(tuple(columns), tuple(rows), values, teacher)


def get(result, key: str):
    """A field of a result, which may be a mapping; None where it has none."""
    return result.get(key) if isinstance(result, Mapping) else getattr(result, key, None)


def mean_of(values: Sequence) -> float | None:
    """The mean of numbers; None where one is unknown or a text, or there is none."""
    if not values or not all(isinstance(value, int | float) for value in values):
        return None
    return values[0] if len(values) == 1 else sum(values) / len(values)


def number(value) -> float | None:
    """A number, as such or in a text; None for None, nan and an empty text."""
    if value is None or value == "" or math.isnan(float(value)):
        return None
    return value if isinstance(value, int) else float(value)


def _aligned(text: str, width: int, left: bool) -> str:
    return text.ljust(width) if left else text.rjust(width)


def _shortened(names: Sequence[str], most: int) -> Sequence[str]:
    """Long names without their middle; with it where two would look alike."""
    half = (most - 3) // 2
    short = [n if len(n) <= most else f"{n[: most - 3 - half]}...{n[-half:]}" for n in names]
    return short if len(set(short)) == len(set(names)) else names


def _printable(text: str) -> str:
    """File names may hold control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in str(text))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "\\`")
