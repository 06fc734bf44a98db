"""Charts as SVG that stands inside a page: its colours come from the page's style, so it goes with dark mode and print.

Every text is escaped here; what the functions return is markup.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

COLOURS = 8  # c0 ... c7 in the page's style; beyond these the strokes are dashed (d1, d2)
GLYPH = 6.8  # width of a letter in units of a chart, at its font size of 11, in a wide typeface
MARKERS = {
    "teacher": "M-4.5-4.5h9v9h-9z",
    "baseline": "M0-5.5L5.5 4.5h-11z",
    "student": "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",
    "": "M0-6L6 0L0 6L-6 0z",
}
HOLES = ("", "M-2.5-2.5h5v5h-5z", "M-6-1.5h12v3h-12z")  # where colours begin again: a hole, a slit


@dataclass(frozen=True)
class Series:
    """A curve: (x, y) pairs; points whose y is None are left out. `index` chooses the colour."""

    name: str
    points: tuple[tuple[float, float | None], ...]
    index: int = 0


@dataclass(frozen=True)
class Point:
    """A model in a scatter: `low` and `high` bound x; `hollow` sets it apart from filled ones."""

    name: str
    x: float
    y: float
    role: str = ""
    index: int = 0
    low: float | None = None
    high: float | None = None
    hollow: bool = False


@dataclass(frozen=True)
class Bar:
    """A row of a bar chart; `why` says what stands there instead of an unknown value, or why a known one has no
    interval; `low` and `high` are the ends of its interval, if any."""

    label: str
    value: float | None
    why: str = ""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Axis:
    """A scale from values to pixels with its ticks."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value; values beyond the ends stay at them."""
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        share = min(max((value - low) / (high - low), 0.0), 1.0)
        return self.start + share * (self.end - self.start)


def axis(
    values: Iterable[float],
    start: float,
    end: float,
    zero: bool = False,
    log: bool = False,
    ends: tuple[float, float] = (-math.inf, math.inf),
    steps: int = 6,
    room: float = 0.0,
) -> Axis:
    """An axis around the values with ticks at 1, 2 or 5 times a power of ten, nothing of it beyond `ends`.

    At most `steps` lie between the ticks of one that is not logarithmic, and at least `room` beyond values that differ.
    `zero` makes it begin or end at 0. `log` asks for a logarithmic one, taken if the values are positive and spread
    over more than a factor of 12.
    """
    values = [float(v) for v in values if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(values), max(values)
    if log and low > 0 and high / low > 12:
        low, high = low / 1.3, high * 1.3
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        powers = powers[:: max(1, len(powers) // 6)]
        ticks = [m * 10.0**p for p in powers for m in ((1, 2, 5) if high / low < 2000 else (1,))]
        return Axis(low, high, start, end, tuple(t for t in ticks if low <= t <= high), True)
    least = max(ends[0], 0.0 if low >= 0 else -math.inf)
    low, high = (min(low, 0.0), max(high, 0.0)) if zero else (low, high)
    room = max((high - low) * 0.12, room) if high > low else abs(high) * 0.2 or 1.0
    low = max(least, low - room * (not zero or low < 0))
    high = min(ends[1], high + room * (not zero or high > 0 or low == high))
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step *= next(m for m in (1, 2, 5, 10, 20, 50) if (high - low) / (step * m) <= steps)
    ticks = (i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1))
    return Axis(low, high, start, end, tuple(float(f"{t:.10g}") for t in ticks))


def style(index: int) -> str:
    """The classes that give the model of this number its colour and its dashes."""
    return f"c{index % COLOURS} d{index // COLOURS % 3}"


def marker(role: str, index: int) -> str:
    """The path of a model's mark: its shape tells the role, and with its colour the model."""
    return MARKERS.get(role, MARKERS[""]) + HOLES[index // COLOURS % 3]


def curves(series: Sequence[Series], label: str, x_label: str, y_label: str, small: bool = False) -> Markup:
    """Curves over 0 to 100 in both directions; `small` for one of many."""
    width, height, left, bottom = (190, 150, 30, 30) if small else (400, 300, 42, 42)
    marks = (0.0, 50.0, 100.0) if small else (0.0, 20.0, 40.0, 60.0, 80.0, 100.0)
    x, y = Axis(0, 100, left, width - 10, marks), Axis(0, 100, height - bottom, 8, marks)
    lines = (
        Markup('<path class="line {}" d="{}"><title>{}</title></path>').format(style(s.index), path, s.name)
        for s in series
        if (path := _path(s.points, x, y))
    )
    return _chart(width, height, label, _frame(x, y, x_label, y_label) + Markup("").join(lines))


def scatter(points: Sequence[Point], label: str, x_label: str, y_label: str) -> Markup:
    """Models in the plane, each with a mark for its role and, where there is room, its name."""
    width, height = 400, 300
    reach = [v for p in points for v in (p.x, p.low, p.high) if v is not None]
    x = axis(reach, 42, width - 10, log=True)
    y = axis([p.y for p in points], height - 42, 8, ends=(0.0, 100.0), room=0.5)  # noise is not to look large
    body, taken, marks = [_frame(x, y, x_label, y_label)], [], [(x(p.x), y(p.y)) for p in points]
    spans = [tuple(x(p.x if v is None else v) for v in (p.low, p.high)) for p in points]
    for at, (low, high) in zip(marks, spans, strict=True):
        taken += [(at[0] - 6, at[1] - 6, at[0] + 6, at[1] + 6), (low, at[1] - 1, high, at[1] + 1)]
    for p, at, span in zip(points, marks, spans, strict=True):
        kind, name = Markup("{}{}").format(style(p.index), " hollow" if p.hollow else ""), _short(p.name, 24)
        if span[0] < span[1]:
            body.append(
                Markup('<path class="whisker {}" d="M{:.1f} {:.1f}H{:.1f}"/>').format(kind, span[0], at[1], span[1])
            )
        mark = '<path class="mark {}" transform="translate({:.1f} {:.1f})" d="{}"><title>{}</title></path>'
        body.append(Markup(mark).format(kind, *at, marker(p.role, p.index), p.name))
        others = [other for other in marks if other != at]
        place = _room(at, span, _width(name), taken, others, (44, 8, width - 4, height - 44))
        if place:
            taken.append(place)
            body.append(Markup('<text x="{:.1f}" y="{:.1f}">{}</text>').format(place[0], place[3] - 3, name))
    return _chart(width, height, label, Markup("").join(body))


def bars(
    rows: Sequence[Bar],
    label: str,
    unit: str = "",
    decimals: int = 1,
    ends: tuple[float, float] = (-math.inf, math.inf),
    shown: Sequence[float] = (),
) -> Markup:
    """Horizontal bars from zero, to the right and to the left, each with its value.

    Bars stop at `ends`, whatever their value; the axis reaches the values in `shown`. Bars whose interval holds 0, or
    that say why they have none, are pale.
    """
    width, step, top = 400, 20, 4
    left = 12 + max((_width(_short(row.label, 20)) for row in rows), default=0)
    known = [v for row in rows for v in (row.value, row.low, row.high) if v is not None]
    known = [min(max(v, ends[0]), ends[1]) for v in (*known, *shown)] or [1.0]
    place = (left + 44 * any(v < 0 for v in known), width - 50)
    axes = [axis(known, *place, zero=True, ends=ends, steps=steps) for steps in range(6, 0, -1)]
    axes = [one for one in axes if len(one.ticks) > 1] or axes[:1]
    x = next((one for one in axes if _clear(one, unit)), axes[-1])
    base = top + step * len(rows)
    body = [_tick(x(tick), top, base, f"{tick:g}{unit}") for tick in x.ticks]
    for i, row in enumerate(rows):
        line = top + i * step
        body.append(
            Markup('<text x="{:.1f}" y="{}" class="end">{}</text>').format(left - 6, line + 14, _short(row.label, 20))
        )
        if row.value is None:
            why = row.why if _width(row.why) < width - x(0) else ""
            text = '<text x="{:.1f}" y="{}" class="soft">{}<title>{}</title></text>'
            body.append(Markup(text).format(x(0) + 4, line + 14, why or "–", row.why))
        else:
            body.append(_bar(row, x, line, f"{round(row.value, decimals) + 0.0:+.{decimals}f}{unit}"))
    body.append(Markup('<path class="axis" d="M{:.1f} {}V{}"/>').format(x(0), top, base))
    return _chart(width, base + 22, label, Markup("").join(body))


def _bar(row, x, top, text):
    """A bar, the line of its interval and its value beyond both."""
    (a, b), down = sorted((x(0), x(row.value))), row.value < 0
    style, title, whisker = "down" if down else "up", f"{row.label}: {text}", ""
    if row.low is not None and row.high is not None:
        style += " pale" * (row.low <= 0 <= row.high)
        title += f" ({row.low:+.1f} to {row.high:+.1f})"
        whisker = Markup('<path class="axis" d="M{:.1f} {}H{:.1f}"/>').format(x(row.low), top + 10, x(row.high))
    elif row.why:
        style, title = f"{style} pale", f"{title} ({row.why})"
    bar = '<path class="{}" d="M{:.1f} {}H{:.1f}V{}H{:.1f}z"><title>{}</title></path>'
    bar = Markup(bar).format(style, a, top + 4, max(b, a + 0.5), top + 16, a, title)
    reach = [a, b, *((x(row.low), x(row.high)) if whisker else ())]
    place = (min(reach) - 4, "end") if down else (max(reach) + 4, "")
    value = Markup('<text x="{:.1f}" y="{}" class="{}">{}</text>').format(place[0], top + 14, place[1], text)
    return bar + whisker + value


def _clear(x, unit):
    """Whether the texts of an axis' ticks stand apart."""
    wide = [_width(f"{tick:g}{unit}") for tick in x.ticks]
    pairs = zip(x.ticks, x.ticks[1:], wide, wide[1:], strict=False)
    return all(x(right) - x(left) > (a + b) / 2 + GLYPH for left, right, a, b in pairs)


def _chart(width, height, label, body):
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        width, height, label, body
    )


def _frame(x, y, x_label, y_label):
    """Grid, ticks and names of both axes."""
    parts = [_tick(x(t), y.end, y.start, f"{t:g}") for t in x.ticks]
    for t in y.ticks:
        parts.append(Markup('<path class="grid" d="M{:.1f} {:.1f}H{:.1f}"/>').format(x.start, y(t), x.end))
        parts.append(Markup('<text class="end" x="{:.1f}" y="{:.1f}">{:g}</text>').format(x.start - 5, y(t) + 4, t))
    parts.append(
        Markup('<path class="axis" d="M{0:.1f} {1:.1f}V{2:.1f}H{3:.1f}"/>').format(x.start, y.end, y.start, x.end)
    )
    middle = ((x.start + x.end) / 2, (y.start + y.end) / 2)
    if x_label:
        parts.append(
            Markup('<text class="mid" x="{:.1f}" y="{:.1f}">{}</text>').format(middle[0], y.start + 34, x_label)
        )
    if y_label:
        turned = '<text class="mid" transform="translate(11 {:.1f}) rotate(-90)">{}</text>'
        parts.append(Markup(turned).format(middle[1], y_label))
    return Markup("").join(parts)


def _tick(at, top, bottom, text):
    line = '<path class="grid" d="M{0:.1f} {1:.1f}V{2:.1f}"/><text class="mid" x="{0:.1f}" y="{3:.1f}">{4}</text>'
    return Markup(line).format(at, top, bottom, bottom + 15, text)


def _path(points, x, y):
    """The points as path data, leaving out those on a straight line between their neighbours."""
    at = [(round(x(a), 1), round(y(b), 1)) for a, b in points if b is not None and math.isfinite(b)]
    kept = [
        p
        for i, p in enumerate(at)
        if i in (0, len(at) - 1) or not (at[i - 1][1] == p[1] == at[i + 1][1] or at[i - 1][0] == p[0] == at[i + 1][0])
    ]
    return "M" + "L".join(f"{a:g} {b:g}" for a, b in kept) if kept else ""


def _room(at, span, width, taken, others, bounds):
    """A box for a text beside a mark and the line through it that covers nothing and lies clearly nearer to it than
    to any other mark, or None."""
    (x, y), right, left = at, max(at[0] + 8, span[1] + 4), min(at[0] - 8, span[0] - 4)
    for start, top in ((right, y - 8), (left - width, y - 8), (x - width / 2, y - 22), (x - width / 2, y + 8)):
        box = (start, top, start + width, top + 15)
        free = all(box[2] <= t[0] or box[0] >= t[2] or box[3] <= t[1] or box[1] >= t[3] for t in taken)
        clear = all(_distance(at, box) + 4 < _distance(other, box) for other in others)
        if free and clear and start >= bounds[0] and top >= bounds[1] and box[2] <= bounds[2] and box[3] <= bounds[3]:
            return box
    return None


def _distance(point, box):
    return math.hypot(*(max(box[i] - point[i], 0, point[i] - box[i + 2]) for i in (0, 1)))


def _width(text):
    """Estimated width of a text in units of a chart."""
    return sum(2 * GLYPH if unicodedata.east_asian_width(c) in "WF" else GLYPH for c in str(text))


def _short(text, letters):
    """The text, its middle left out where it is too long: the ends of names tell them apart."""
    text = str(text)
    if _width(text) <= letters * GLYPH:
        return text
    cuts = (text[: (n + 1) // 2] + "…" + text[len(text) - n // 2 :] for n in range(min(len(text), letters) - 1, 0, -1))
    return next((cut for cut in cuts if _width(cut) <= letters * GLYPH), "…")
