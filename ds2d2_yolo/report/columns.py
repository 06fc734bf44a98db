"""The tables of a report: what models are worth and cost, their times, their classes, and what distillation bought."""

from __future__ import annotations

from collections.abc import Mapping

from ds2d2_yolo.report.bootstrap import Bootstrap
from ds2d2_yolo.report.recovery import Recovery, Roles, recovered
from ds2d2_yolo.report.seeds import Group, difference, summarise
from ds2d2_yolo.report.tables import Column, Table, get, number

SIZES = ("small", "medium", "large")
STAGES = {"preprocess": "pre", "inference": "inference", "postprocess": "post", "total": "total"}
CLOSED = {"ap": "AP", "ap50": "AP50", "ap_small": "APs"}  # figures whose gap stands in tables

_ACCURACY = tuple(
    Column(heading, key, decimals, group="accuracy", gap=gap, show="known")
    for heading, key, decimals, gap in (
        ("AP", "ap", 1, True),
        ("AP50", "ap50", 1, True),
        ("AP75", "ap75", 1, True),
        ("VOC07", "voc07", 1, False),
        ("VOC12", "voc12", 1, False),
        ("precision", "precision", 1, False),
        ("recall", "recall", 1, False),
        ("F1", "f1", 1, False),
        ("at conf", "confidence", None, False),
    )
)
_COST = tuple(
    Column(heading, key, decimals, unit, "cost", show="known")
    for heading, key, decimals, unit in (
        ("params (M)", "parameters", 2, 1e6),
        ("GFLOPs", "gflops", 1, 1),
        ("file (MB)", "file_mb", 1, 1),
        ("peak (MB)", "peak_mb", 0, 1),
    )
)


def models_table(ratings: Mapping, costs: Mapping | None = None, roles: Roles | None = None) -> Table:
    """Everything about each model, in groups of columns: accuracy, sizes, cost, distillation.

    Args:
        ratings: `Rating`, or its ``as_dict()``, by name.
        costs: `Cost`, or its ``as_dict()``, by name; models may lack one.
        roles: With a teacher, AP stands with the gap to it; with a baseline too, students with the share of the
            teacher's lead that they closed.
    """
    costs = costs or {}
    limits = sorted({int(k) for rating in ratings.values() for k in get(rating, "ar") or {}})
    columns = [*_ACCURACY[:3], *(Column(f"AR{k}", f"ar_{k}", group="accuracy", show="known") for k in limits)]
    columns += [*_ACCURACY[3:], *_size_columns(), *_COST, *_latency_columns(costs)]
    bought = {name: _bought(name, ratings, roles) for name in ratings} if roles else {}
    if roles and (roles.teacher or roles.baseline):
        columns += [Column("role", "role", group="distillation", show="never")]
        columns += [
            Column(f"{title} gain", f"gain_{key}", 1, group="distillation", show="known", signed=True)
            for key, title in CLOSED.items()
        ]
        columns += _closed_columns("distillation")
    values = []
    for name, rating in ratings.items():
        flat = {"role": roles.of(name) if roles else None, **bought.get(name, {})}
        flat |= {f"ar_{k}": v for k, v in (get(rating, "ar") or {}).items()}
        flat |= {c.key: get(rating, c.key) for c in columns if c.group in ("accuracy", "sizes") and c.key not in flat}
        flat |= _flat_cost(costs.get(name), rating)
        values.append(tuple(_value(flat.get(column.key)) for column in columns))
    teacher = roles.teacher.models if roles and roles.teacher else None
    return Table(tuple(columns), tuple(ratings), tuple(values), teacher, marks=_marks(roles))


def _size_columns():
    for title, key, gap in (("AP", "ap", True), ("AP50", "ap50", False), ("AR", "ar", False)):
        yield from (Column(f"{title} {s}", f"{key}_{s}", group="sizes", gap=gap, show="known") for s in SIZES)


def _latency_columns(costs: Mapping):
    """Times in all are shown; their stages stand in files, and in `latency_table`."""
    kinds = {(get(e, "runtime"), get(e, "batch")): 1 for cost in costs.values() for e in get(cost, "latency") or ()}
    for runtime, batch in kinds:
        for stage in STAGES:
            for edge in ("median", "low", "high"):
                show = "known" if (stage, edge) == ("total", "median") else "never"
                key = _latency_key(runtime, batch, stage, edge)
                yield Column(f"{str(runtime).removesuffix(' Runtime')} ×{batch} (ms)", key, 2, group="cost", show=show)


def _closed_columns(group):
    return [Column(f"{title} closed (%)", f"closed_{k}", 0, 0.01, group, show="known") for k, title in CLOSED.items()]


def _latency_key(runtime, batch, stage, edge) -> str:
    return f"ms_{str(runtime).lower().replace(' ', '_')}_{batch}_{stage}_{edge}"


def _flat_cost(cost, rating) -> dict:
    flat = (
        {column.key: get(cost, column.key) for column in _COST} if cost else {"parameters": get(rating, "parameters")}
    )
    for entry in (get(cost, "latency") or ()) if cost else ():
        for stage in STAGES:
            spread = get(entry, stage)
            for edge in ("median", "low", "high"):
                flat[_latency_key(get(entry, "runtime"), get(entry, "batch"), stage, edge)] = get(spread, edge)
    return flat


def _marks(roles: Roles | None):
    groups = (("teacher", roles.teacher), ("baseline", roles.baseline)) if roles else ()
    return tuple((name, role) for role, group in groups if group for name in group.models)


def _bought(name: str, ratings: Mapping, roles: Roles) -> dict:
    """Gains and shares by key of the column; empty for who is no student."""
    if roles.of(name) != "student":
        return {}
    return _gains_and_shares(Group(name, (name,), (None,), name), roles, ratings)


def _gains_and_shares(student: Group, roles: Roles, ratings: Mapping) -> dict:
    recovery, result = gap(roles, student, ratings), {}
    for key in CLOSED if roles.baseline else ():
        result[f"gain_{key}"] = difference(student, roles.baseline, ratings, key).difference
        result[f"closed_{key}"] = recovery.figures[key].share if recovery else None
    return result


def gap(roles: Roles, student: Group, ratings: Mapping) -> Recovery | None:
    """What a student, or the mean of its seeds, closed of the teacher's lead; None without teacher or baseline."""
    if not roles.teacher or not roles.baseline:
        return None
    return recovered(*([ratings[m] for m in group.models] for group in (roles.teacher, roles.baseline, student)))


def latency_table(costs: Mapping) -> Table:
    """A row for each model, runtime and batch size: stages in ms an image, median and quartiles."""
    columns = [Column("runtime", "runtime"), Column("batch", "batch", 0)]
    columns += [Column(f"{title} (ms)", stage) for stage, title in STAGES.items()]
    entries = [(name, entry) for name, cost in costs.items() for entry in get(cost, "latency") or ()]
    if len({get(entry, "device") for _, entry in entries}) > 1:
        columns.append(Column("device", "device"))

    def cell(entry, key):
        return _spread(get(entry, key)) if key in STAGES else get(entry, key)

    values = tuple(tuple(cell(entry, column.key) for column in columns) for _, entry in entries)
    return Table(tuple(columns), tuple(name for name, _ in entries), values)


def _spread(spread) -> str:
    median, low, high = (float(get(spread, edge)) for edge in ("median", "low", "high"))
    decimals = 2 if median < 10 else 1 if median < 100 else 0
    return f"{median:.{decimals}f} ({low:.{decimals}f}-{high:.{decimals}f})"


def classes_table(ratings: Mapping, key: str = "ap50") -> Table:
    """A row a class, a column a model: one figure, beside the number of objects."""
    columns = [Column("objects", "objects", 0), *(Column(name, name) for name in ratings)]
    kinds = [{get(kind, "index"): kind for kind in get(rating, "classes") or ()} for rating in ratings.values()]
    names, values = [], []
    for index, kind in kinds[0].items() if kinds else ():
        names.append(str(get(kind, "name")))
        known = (_value(get(each.get(index, {}), key)) for each in kinds)
        values.append((get(kind, "objects"), *known))
    return Table(tuple(columns), tuple(names), tuple(values), head="class")


def recipes_table(roles: Roles, ratings: Mapping, bootstraps: Mapping[str, Bootstrap] | None = None) -> Table:
    """A row a recipe: its seeds, mean and spread of AP, the lead over the baseline and whether it is noise, and the gap
    closed. `bootstraps`: of student against baseline, by the student's name (``Group.name``)."""
    columns = [Column("seeds", "seeds", 0, group="mean")]
    for key, title in CLOSED.items():
        columns += [Column(title, key, group="mean"), Column("sd", f"{key}_sd", 1, group="mean", show="known")]
    for key in ("ap", "ap50"):
        columns += _gain_columns(key, CLOSED[key])
    columns += _closed_columns("share of the teacher's lead")
    groups = [group for group in (roles.teacher, roles.baseline, *roles.students) if group]
    values = []
    for group in groups:
        flat = _recipe(group, roles, ratings, (bootstraps or {}).get(group.name))
        values.append(tuple(_value(flat.get(column.key)) for column in columns))
    marks = tuple((g.name, r) for r, g in (("teacher", roles.teacher), ("baseline", roles.baseline)) if g)
    return Table(tuple(columns), tuple(g.name for g in groups), tuple(values), head="recipe", marks=marks)


def _gain_columns(key: str, title: str) -> list[Column]:
    """The difference of the means; the spread of the differences seed by seed; the interval over images."""
    fields = (
        (f"{title} gain", f"gain_{key}", "known"),
        ("mean by seed", f"paired_{key}", "never"),
        ("sd by seed", f"paired_{key}_sd", "known"),
        ("from", f"low_{key}", "known"),
        ("to", f"high_{key}", "known"),
    )
    columns = [
        Column(head, name, 1, 1, f"gain in {title}", show=show, signed=not name.endswith("sd"))
        for head, name, show in fields
    ]
    return [*columns, Column(f"{title} is", f"verdict_{key}", group=f"gain in {title}", show="known")]


def _recipe(group: Group, roles: Roles, ratings: Mapping, found: Bootstrap | None) -> dict:
    flat: dict = {"seeds": len(group.models)}
    for key in CLOSED:
        summary = summarise(_value(get(ratings[name], key)) for name in group.models)
        flat |= {key: summary.mean, f"{key}_sd": summary.sd}
    if group not in roles.students or not roles.baseline:
        return flat
    for key in ("ap", "ap50"):
        paired = difference(group, roles.baseline, ratings, key).paired
        flat |= {f"paired_{key}": paired.mean, f"paired_{key}_sd": paired.sd}
        if found:
            interval = getattr(found, key)
            flat |= {f"{field}_{key}": getattr(interval, field) for field in ("low", "high", "verdict")}
    return flat | _gains_and_shares(group, roles, ratings)


def gap_table(recovery: Recovery) -> Table:
    """Teacher, baseline, student and the share of the lead that was closed: in all, by size and by class."""
    columns = [Column(title, title) for title in ("teacher", "baseline", "student")]
    columns += [Column("gain", "gain", signed=True), Column("gap closed", "share")]
    shares = [*recovery.figures.values(), *recovery.classes]
    closed = [s.why if s.share is None else f"{100 * s.share:.0f} %" for s in shares]
    values = [(s.teacher, s.baseline, s.student, s.gain, text) for s, text in zip(shares, closed, strict=True)]
    return Table(tuple(columns), tuple(s.label for s in shares), tuple(values), head="AP of")


def _value(value):
    return value if isinstance(value, str) else number(value)
