"""Pictures of what distillation compares: feature maps in bands, the scale weight, and what amplifiers make of it."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullLocator

from ds2d2_yolo.report.pictures import write_picture

WIDTH = 2.9  # of a panel, in inches
TITLES = {
    "difference": "Difference of the features",
    "low_difference": "Difference, low band",
    "high_difference": "Difference, high band",
    "gap_full": "Gap through the teacher's head",
    "gap_high": "Gap through the high-frequency amplifier",
}


@dataclass(frozen=True)
class Bands:
    """One model's maps at a level, each a root mean square over the channels.

    `features` (H, W), `low` and `high` (h, w) of their wavelet transform.
    """

    features: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class LevelView:
    """What two models see at the level of `stride` pixels.

    `weight` (h, w) is the scale weight; `difference` (H, W), `low_difference` and `high_difference` (h, w) are root
    mean squares over the channels; `gap_full` and `gap_high` (H, W) how far apart the predictions are that an amplifier
    makes of both models' maps, None where it was not asked. `on_objects`: by the names of these maps, the mean over
    the cells of objects divided by the mean over the others, None where there are only cells of one kind.
    """

    stride: int
    teacher: Bands
    student: Bands
    weight: np.ndarray
    difference: np.ndarray
    low_difference: np.ndarray
    high_difference: np.ndarray
    gap_full: np.ndarray | None = None
    gap_high: np.ndarray | None = None
    on_objects: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Explanation:
    """All that a picture shows of one image.

    `image` (H, W, 3) uint8 RGB is what the models saw, padding included; `content` (x1, y1, x2, y2) is the part within
    the padding and `boxes` (N, 4) xyxy are the objects, all in its pixels. `notes`: sentences on how it was made;
    `title`: the image's path.
    """

    title: str
    image: np.ndarray
    content: tuple[int, int, int, int]
    boxes: np.ndarray
    levels: tuple[LevelView, ...]
    notes: tuple[str, ...] = ()


def table(explanation: Explanation) -> str:
    """Return, as text, how much stronger every map is on objects than off them."""
    columns = ["difference", "low_difference", "high_difference", "gap_full", "gap_high"]
    lines = [["stride", "features", "low band", "high band", "teacher's head", "high-frequency amplifier"]]
    for view in explanation.levels:
        lines.append([str(view.stride), *(_ratio(view.on_objects.get(name)) or "-" for name in columns)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ["  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)) for line in lines]
    head = "How many times as large the mean difference is over the cells of objects as over the others:"
    return "\n".join([head, *rows])


def draw(explanation: Explanation, path: str | Path) -> Path:
    """Draw the picture as a PNG file and return its path; its folder is made.

    Raises:
        UserError: The file cannot be written.
    """
    x1, y1, x2, y2 = explanation.content
    height = 0.8 * WIDTH * min(max((y2 - y1) / max(x2 - x1, 1), 0.4), 2.0)  # the colour bar takes its part
    rows, head = 2 * len(explanation.levels), max(1.2 * height + 0.4, 0.26 * len(_text(explanation)) + 0.3)
    figure = Figure(figsize=(6 * WIDTH, head + rows * (height + 0.5)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.05, h_pad=0.05)
    top, below = figure.subfigures(2, 1, height_ratios=[head, rows * (height + 0.5)])
    _draw_head(top, explanation)
    axes = below.subplots(rows, 6, squeeze=False)
    for i in range(len(explanation.levels)):
        _draw_level(axes[2 * i : 2 * i + 2], i, explanation)
    return write_picture(figure, path, of=explanation.title)


def _text(explanation: Explanation) -> list[str]:
    lines = [*textwrap.wrap(explanation.title, 125), ""]
    for note in explanation.notes:
        lines += textwrap.wrap(note, 125, subsequent_indent="    ", break_on_hyphens=False)
    lines += ["", "on objects 3x: the mean over the cells of objects is three times the mean over the others."]
    return [*lines, "80% of all levels: of this gap, summed over the levels, so much lies at this one."]


def _draw_head(figure, explanation: Explanation) -> None:
    picture, text = figure.subplots(1, 2, width_ratios=[1, 3])
    picture.imshow(explanation.image)
    _frame(picture, explanation)
    for a, b, c, d in explanation.boxes:
        picture.add_patch(Rectangle((a, b), c - a, d - b, fill=False, edgecolor="#39ff14", linewidth=0.8))
    count = len(explanation.boxes)
    _title(picture, f"The image, {count} object{'s' * (count != 1)}")
    text.axis("off")
    said = text.text(0, 1, "\n".join(_text(explanation)), va="top", fontsize=11, parse_math=False)
    said.set_in_layout(False)  # however long a path is


def _draw_level(axes: np.ndarray, place: int, explanation: Explanation) -> None:
    view = explanation.levels[place]
    for row, name, bands in zip(axes, ("Teacher", "Student"), (view.teacher, view.student), strict=True):
        for axis, part in zip(row, ("features", "low", "high"), strict=False):
            both = [getattr(side, part) for side in (view.teacher, view.student)]  # one scale for the two
            _map(axis, getattr(bands, part), explanation, "viridis", Normalize(*_range(both)))
            _title(axis, f"{name}: {'features' if part == 'features' else f'{part} band'}")
        row[0].set_ylabel(f"stride {view.stride}", fontsize=12)
    _draw_weight(axes[0, 3], view, explanation)
    places = {"low_difference": axes[0, 4], "gap_full": axes[0, 5], "difference": axes[1, 3]}
    places |= {"high_difference": axes[1, 4], "gap_high": axes[1, 5]}
    for name, axis in places.items():
        values = [getattr(level, name) for level in explanation.levels]
        _title(axis, TITLES[name] + _said(view, name, [v for v in values if v is not None]))
        if values[place] is None:
            axis.axis("off")
            axis.text(0.5, 0.5, "left out: see above", ha="center", va="center", transform=axis.transAxes)
        elif name.startswith("gap"):  # one scale for all levels: their sum is the loss
            _map(axis, values[place], explanation, "inferno", Normalize(*_range(values, 0.0)), over_image=True)
        else:
            _map(axis, values[place], explanation, "inferno", Normalize(*_range(values[place : place + 1])))


def _draw_weight(axis: Axes, view: LevelView, explanation: Explanation) -> None:
    _title(axis, "Scale weight (DISW): added by objects")
    added = np.ma.masked_less_equal(view.weight - 1, 0)
    if not added.count():
        _grey(axis, explanation)
        return
    low, high = float(added.min()), float(added.max())
    bar = _map(axis, added, explanation, "plasma", LogNorm(low * 0.99, high * 1.01), over_image=True)
    ticks = sorted({low, (low * high) ** 0.5, high}) if high > 1.5 * low else [high]
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.set_ticks(ticks, labels=[f"{t:.2g}" for t in ticks])


def _map(axis: Axes, values: np.ndarray, explanation: Explanation, colours: str, norm, over_image=False) -> Colorbar:
    """Show values (h, w) over the whole of the padded image, as the scale weight lays its cells."""
    height, width = explanation.image.shape[:2]
    where = {"extent": (0, width, height, 0), "interpolation": "nearest"}
    if over_image:
        _grey(axis, explanation)
        where["alpha"] = np.ma.filled(0.9 * np.clip(norm(values), 0, 1) ** 0.5, 0.0)  # little hides little of the image
    axis.imshow(values, cmap=colours, norm=norm, **where)
    _frame(axis, explanation)
    bar = axis.figure.colorbar(ScalarMappable(norm, colours), ax=axis, fraction=0.04, pad=0.015)
    bar.ax.tick_params(labelsize=7)
    bar.ax.yaxis.get_offset_text().set_size(7)
    return bar


def _grey(axis: Axes, explanation: Explanation) -> None:
    axis.imshow(explanation.image.mean(2), cmap="gray", vmin=0, vmax=255)
    _frame(axis, explanation)


def _frame(axis: Axes, explanation: Explanation) -> None:
    x1, y1, x2, y2 = explanation.content
    axis.set(xlim=(x1, x2), ylim=(y2, y1), xticks=[], yticks=[], aspect="equal")


def _range(maps: list[np.ndarray], low: float | None = None) -> tuple[float, float]:
    """Limits that a few cells cannot stretch; those of several maps are the widest."""
    bottoms, tops = zip(*(np.percentile(values, (0.5, 99.5)) for values in maps), strict=True)
    low = min(bottoms) if low is None else low
    return float(low), float(max(*tops, low + 1e-30))


def _title(axis: Axes, text: str) -> None:
    axis.set_title(text, fontsize=9.5, parse_math=False)


def _said(view: LevelView, name: str, every: list[np.ndarray]) -> str:
    """The second line of a title: how much lies on objects and, of a gap, at this level."""
    ratio = _ratio(view.on_objects.get(name))
    said = [f"on objects {ratio}"] if ratio else []
    total = sum(float(values.sum()) for values in every)
    if name.startswith("gap") and len(every) > 1 and total > 0:
        said.append(f"{float(getattr(view, name).sum()) / total:.0%} of all levels")
    return "\n" + ", ".join(said)


def _ratio(value: float | None) -> str | None:
    return None if value is None else f"{value:.2g}x" if value < 99.5 else f"{value:.0f}x"
