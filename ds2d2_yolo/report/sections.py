"""What stands in the sections of a page: cells of its tables and its charts, from the models' ratings and costs."""

from __future__ import annotations

import math
from collections.abc import Iterator

from markupsafe import Markup

from ds2d2_yolo.report import charts, tables

CURVES = 400  # curves by class, classes times models
CELLS = 6000  # cells of a table by class
BARS = 40
REACH = (-100.0, 200.0)  # per cent of a gap that its bars show; the values beyond are written
UNKNOWN = "–"

# Columns of the tables: heading, where in the rating or cost, unit of one, decimals (None: a score), sign of better (0:
# neither).
ACCURACY = (
    ("AP", "ap", 1, 1, 1),
    ("AP50", "ap50", 1, 1, 1),
    ("AP75", "ap75", 1, 1, 1),
    ("VOC07 AP50", "voc07", 1, 1, 1),
    ("VOC12 AP50", "voc12", 1, 1, 1),
    ("precision", "precision", 1, 1, 1),
    ("recall", "recall", 1, 1, 1),
    ("F1", "f1", 1, 1, 1),
    ("at confidence", "confidence", 1, None, 0),
)
SIZES = tuple(
    (f"{heading} {size}", f"{key}_{size}", 1, 1, 1)
    for heading, key in (("AP", "ap"), ("AP50", "ap50"), ("AR", "ar"))
    for size in ("small", "medium", "large")
)
COST = (
    ("parameters (M)", "parameters", 1e6, 2, -1),
    ("GFLOPs", "gflops", 1, 1, -1),
    ("file (MB)", "file_mb", 1, 1, -1),
    ("peak memory (MB)", "peak_mb", 1, 0, -1),
)
STAGES = ("preprocess", "inference", "postprocess", "total")


def sections(report) -> dict:
    """What the page's template is filled with besides the report (`page.Report`) itself."""
    models = report.models
    return {
        "legend": [(m, charts.style(i), charts.marker(m.role, i)) for i, m in enumerate(models)],
        "tables": [table for table in _tables(models) if table["columns"]],
        "latency": list(_latency(models)),
        "plots": list(_plots(models)),
        "gains": list(_gains(models, report.intervals)),
        "gaps": [(gap, *_gap_bars(gap, models)) for gap in report.recovered],
        "class_curves": _class_curves(models),
        "class_tables": list(_class_tables(models)),
        "percent": lambda share: UNKNOWN if share is None else f"{round(100 * share) + 0} %",
        "points": lambda value: UNKNOWN if _number(value) is None else f"{value:.1f}",
        "signed": lambda value: UNKNOWN if _number(value) is None else f"{round(value, 2) + 0.0:+.2f}",
    }


def _tables(models):
    """Accuracy, sizes and cost: models down, values across, with the gap to the teacher."""
    detections = sorted({int(k) for m in models for k in m.rating.get("ar") or {}})
    recall = tuple((f"AR at {k}", ("ar", k), 1, 1, 1) for k in detections)
    for title, columns, part in (
        ("Accuracy", (*ACCURACY[:3], *recall, *ACCURACY[3:]), "rating"),
        ("By size of the objects", SIZES, "rating"),
        ("Cost", COST, "cost"),
    ):
        values = [[_number(_get(getattr(m, part), where), unit) for _, where, unit, *_ in columns] for m in models]
        kept = [i for i in range(len(columns)) if any(row[i] is not None for row in values)]
        yield {
            "title": title,
            "columns": [columns[i][0] for i in kept],
            "rows": _rows(models, [[row[i] for i in kept] for row in values], [columns[i] for i in kept], part),
        }


def _rows(models, values, columns, part):
    """Cells with text, gap to the teacher (of ratings), and whether the value is the best of several."""
    teachers = [i for i, m in enumerate(models) if m.role == "teacher"] if part == "rating" else []
    for i, model in enumerate(models):
        cells = []
        for j, (_, _, _, decimals, better) in enumerate(columns):
            value, known = values[i][j], [row[j] for row in values if row[j] is not None]
            goal = tables.mean_of([values[t][j] for t in teachers]) if better and i not in teachers else None
            gap = None if value is None or goal is None else round(value - goal, decimals) + 0.0
            text = tables.score if decimals is None else f"{{:.{decimals}f}}".format
            extreme = max if better > 0 else min
            told_apart = better != 0 and len({text(one) for one in known}) > 1  # as they are shown
            cells.append(
                {
                    "value": value,
                    "text": UNKNOWN if value is None else text(value),
                    "gap": "" if gap is None else f"{gap:+.{decimals}f}",
                    "best": told_apart and value is not None and text(value) == text(extreme(known)),
                }
            )
        yield model, cells


def _get(mapping, where):
    """A field, or (field, number) of a dict whose keys may have become texts in JSON."""
    if isinstance(where, str):
        return mapping.get(where)
    part = mapping.get(where[0]) or {}
    return part.get(where[1], part.get(str(where[1])))


def _number(value, unit=1):
    return None if value is None or math.isnan(float(value)) else float(value) / unit


def _latency(models):
    """Lines of the table of times: model, runtime, batch, device and the three stages and in all."""
    for model in models:
        for entry in model.cost.get("latency") or ():
            yield model, entry, [entry[stage] for stage in STAGES]


def _plots(models):
    """(title, chart, remark) of the curves over all classes and of AP against what it costs."""
    curves = [s for i, m in enumerate(models) if (s := _series(m.name, m.rating.get("curve"), i))]
    if curves:
        label = "Precision over recall at IoU 0.5, mean over the classes"
        yield "Precision and recall", charts.curves(curves, label, "recall", "precision"), f"{label}."
    points = []
    for model, entry, (*_, whole) in _latency(models):
        ap, hollow = _number(model.rating.get("ap")), entry["runtime"] != "PyTorch"
        if ap is not None and entry["batch"] == 1:
            x, index = [whole[edge] for edge in ("median", "low", "high")], models.index(model)
            points.append(charts.Point(model.name, x[0], ap, model.role, index, x[1], x[2], hollow))
    if points:
        plot = charts.scatter(points, "AP against latency", "ms an image, batch 1", "AP")
        remark = "Pre-processing, inference and post-processing: median, and quartiles as a line. "
        others = sorted({entry["runtime"] for _, entry, _ in _latency(models)} - {"PyTorch"})
        yield "AP against latency", plot, remark + f"Filled: PyTorch; hollow: {', '.join(others)}." * bool(others)
    sizes = [(m, _number(m.cost.get("parameters"), 1e6), _number(m.rating.get("ap"))) for m in models]
    points = [
        charts.Point(m.name, x, y, m.role, i) for i, (m, x, y) in enumerate(sizes) if x is not None and y is not None
    ]
    if points:
        plot = charts.scatter(points, "AP against parameters", "parameters (M)", "AP")
        yield "AP against parameters", plot, "Batch norms folded into the convolutions, as inference has it."


def _series(name, curve, index):
    if not curve or all(_number(v) is None for v in curve):
        return None
    step = 100 / max(len(curve) - 1, 1)
    return charts.Series(name, tuple((i * step, _number(v)) for i, v in enumerate(curve)), index)


def _gains(models, intervals) -> Iterator[tuple[str, Markup, str]]:
    """(title, bars, remark): by class, what each group of students gains over the baselines."""
    baseline = _mean_classes([m for m in models if m.role == "baseline"])
    students = {}
    for model in models:
        if model.role == "student":
            students.setdefault(model.group or model.name, []).append(model)
    for name, members in students.items():
        found, known, rows = _mean_classes(members), intervals.get(name) or {}, []
        for k, (label, ap) in baseline.items():
            if k in found:
                span = known.get(k, known.get(str(k))) or {}
                ends = (_number(span.get("low")), _number(span.get("high")))
                why = "too few images for an interval" * (None in ends and bool(known))
                rows.append(charts.Bar(label, found[k][1] - ap, why, *ends))
        if not rows:
            continue
        rows.sort(key=lambda row: -row.value)
        title, remark = f"Gain by class: {name}", "AP of the student minus AP of the baseline, in points."
        remark += f" Mean of {len(members)} seeds." if len(members) > 1 else ""
        if any(row.low is not None for row in rows):
            remark += " Lines: intervals over the images, of all classes at once; pale where 0 is in (within noise)"
            remark += " or too few images hold the class." if any(row.why for row in rows) else "."
        elif any(row.why for row in rows):
            remark += " Pale: too few images hold the classes for intervals."
        if len(rows) > BARS:
            remark += f" The {BARS // 2} classes that gain and lose most, of {len(rows)}."
            rows = rows[: BARS // 2] + rows[-BARS // 2 :]
        yield title, charts.bars(rows, title), remark


def _mean_classes(models):
    """Class index -> (name, mean AP) of the classes that each of the models has an AP of."""
    each = [{c["index"]: (c["name"], _number(c["ap"])) for c in m.rating.get("classes") or ()} for m in models]
    shared = [k for k in (each[0] if each else ()) if all(k in e and e[k][1] is not None for e in each)]
    return {k: (each[0][k][0], sum(e[k][1] for e in each) / len(each)) for k in shared}


def _gap_bars(gap, models):
    """Bars of what was recovered, and how many classes stand back for room; those with the most objects stay."""
    objects = {c["name"]: c["objects"] for m in models for c in m.rating.get("classes") or ()}
    kept = sorted(gap.shares, key=lambda s: -objects.get(s.label, math.inf))[:BARS]
    rows = [charts.Bar(s.label, None if s.share is None else 100 * s.share, s.why) for s in gap.shares if s in kept]
    title = f"Share of the teacher's lead recovered by {gap.student}"
    return charts.bars(rows, title, " %", 0, REACH, (100.0,)), len(gap.shares) - len(rows)


def _classes(models, room):
    """Class index -> (name, objects, the class of each model or None), and how many classes stand back for room; those
    with the most objects stay."""
    each = [{c["index"]: c for c in m.rating.get("classes") or ()} for m in models]
    every = {k: c for e in each for k, c in e.items()}
    most = sorted(every, key=lambda k: (-every[k]["objects"], k))[: max(1, room // max(1, len(models)))]
    kept = {k: (every[k]["name"], every[k]["objects"], [e.get(k) for e in each]) for k in sorted(most)}
    return kept, len(every) - len(kept)


def _class_curves(models):
    """Small charts, one a class with objects, and how many classes are left out."""
    kept, left_out = _classes(models, CURVES)
    plots = []
    for name, objects, each in kept.values():
        every = [_series(m.name, c.get("curve"), i) for i, (m, c) in enumerate(zip(models, each, strict=True)) if c]
        if objects and any(every):
            label = f"Precision over recall: {name}"
            plots.append((name, objects, charts.curves([s for s in every if s], label, "", "", small=True)))
    return {"plots": plots, "left_out": left_out}


def _class_tables(models):
    """AP and AP50 by class: classes down, models across."""
    kept, left_out = _classes(models, CELLS)
    for title, key in (("AP by class", "ap"), ("AP50 by class", "ap50")):
        rows = []
        for name, objects, each in kept.values():
            values = [_number(c.get(key)) if c else None for c in each]
            shown = [UNKNOWN if v is None else f"{v:.1f}" for v in values]
            known = {text: v for v, text in zip(values, shown, strict=True) if v is not None}
            best = max(known, key=known.__getitem__) if len(known) > 1 else None
            cells = [(v, text, v is not None and text == best) for v, text in zip(values, shown, strict=True)]
            rows.append((name, objects, cells))
        if rows:
            yield {"title": title, "rows": rows, "left_out": left_out}
