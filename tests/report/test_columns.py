"""The tables of a report from ratings and costs as they are measured, and as they come out of JSON."""

import csv
import io
import json

import numpy as np
import pytest

from ds2d2_yolo.report import columns
from ds2d2_yolo.report.bootstrap import bootstrap, judge
from ds2d2_yolo.report.detections import Detections, Truth
from ds2d2_yolo.report.rating import rate
from ds2d2_yolo.report.recovery import roles

# By name, how many pixels off a model's boxes may be
OFF = {"teacher": 2, "plain_s0": 9, "plain_s1": 10, "new_s0": 6, "new_s1": 5}
ROLES = roles(list(OFF))


def scenes(off, seed):
    rng = np.random.default_rng(seed)
    image = np.repeat(np.arange(20), 4)
    box = np.tile([0.0, 0, 20, 20], (80, 1)) + 100 * (np.arange(80) % 4)[:, None]
    truth = Truth(tuple(map(str, range(20))), np.full((20, 2), 500), image, image % 2, box, {0: "x", 1: "y", 2: "z"})
    return truth, Detections(image, image % 2, rng.random(80), box + np.outer(off * rng.random(80), [1, 0, 1, 0]))


FOUND = {name: scenes(off, i) for i, (name, off) in enumerate(OFF.items())}
TRUTH = FOUND["teacher"][0]
RATINGS = {name: rate(*pair) for name, pair in FOUND.items()}
SPREAD = {"median": 1.25, "low": 1.0, "high": 150.0}


def cost(*kinds):
    stages = dict.fromkeys(columns.STAGES, SPREAD)
    entries = [
        {"runtime": runtime, "batch": batch, "device": "a CPU", "rounds": 9, **stages} for runtime, batch in kinds
    ]
    return {"parameters": 2_510_000, "gflops": None, "file_mb": 5.25, "peak_mb": 99.6, "latency": entries}


COSTS = {"teacher": cost(("PyTorch", 1), ("ONNX Runtime", 1)), "new_s0": cost(("PyTorch", 1))}


def shown(table):
    head, rows = table.texts()
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


def test_a_row_has_accuracy_sizes_cost_and_distillation():
    table = columns.models_table(RATINGS, COSTS, ROLES)
    rows, rating = shown(table), RATINGS["new_s0"]
    assert list(rows) == ["teacher", "plain_s0 (baseline)", "plain_s1 (baseline)", "new_s0", "new_s1"]
    row, lead = rows["new_s0"], rating.ap - RATINGS["teacher"].ap
    assert row["AP"] == row["AP small"] == f"{rating.ap:.1f} ({lead:+.1f})" and row["AR300"] == f"{rating.ar[300]:.1f}"
    assert (row["params (M)"], row["peak (MB)"], row["PyTorch ×1 (ms)"], row["ONNX ×1 (ms)"]) == (
        "2.51",
        "100",
        "1.25",
        "-",
    )
    plain = (RATINGS["plain_s0"].ap + RATINGS["plain_s1"].ap) / 2
    assert row["AP gain"] == f"{rating.ap - plain:+.1f}"
    assert row["AP closed (%)"] == f"{100 * (rating.ap - plain) / (RATINGS['teacher'].ap - plain):.0f}"
    assert rows["plain_s0 (baseline)"]["AP closed (%)"] == "-"
    assert not {"GFLOPs", "AP medium", "role"} & set(row)  # known of nobody, or in files only
    groups = list(dict.fromkeys(column.group for column in table.columns))
    assert groups == ["accuracy", "sizes", "cost", "distillation"]


def test_csv_and_json_hold_a_row_a_model_unrounded():
    table = columns.models_table(RATINGS, COSTS, ROLES)
    row = {row["model"]: row for row in csv.DictReader(io.StringIO(table.csv()))}["new_s0"]
    assert (
        float(row["ap"]) == RATINGS["new_s0"].ap
        and float(row["ap_gap"]) == RATINGS["new_s0"].ap - RATINGS["teacher"].ap
    )
    assert (row["role"], row["parameters"], row["gflops"], row["ap_medium"]) == ("student", "2510000", "", "")
    assert row["ms_pytorch_1_inference_high"] == "150.0" and row["ms_onnx_runtime_1_total_low"] == ""
    assert json.loads(table.json())[3]["closed_ap"] == pytest.approx(float(row["closed_ap"]))


def test_what_was_stored_as_json_gives_the_same_tables():
    stored = json.loads(json.dumps({name: rating.as_dict() for name, rating in RATINGS.items()}))
    assert columns.models_table(stored, COSTS, ROLES).rows() == columns.models_table(RATINGS, COSTS, ROLES).rows()
    assert columns.classes_table(stored).rows() == columns.classes_table(RATINGS).rows()
    assert columns.recipes_table(ROLES, stored).rows() == columns.recipes_table(ROLES, RATINGS).rows()


def test_the_gap_to_a_teacher_of_several_seeds_is_to_their_mean():
    ratings = {
        name: {"ap": ap} for name, ap in (("teacher_s0", 50), ("teacher_s1", 40), ("plain", 30), ("student", 40))
    }
    table = columns.models_table(ratings, {}, roles(list(ratings)))
    rows = {row["model"]: row for row in table.rows()}
    assert [rows[name]["ap_gap"] for name in ratings] == [None, None, -15, -5]
    assert rows["student"]["closed_ap"] == pytest.approx(2 / 3)
    assert shown(table)["student"]["AP"] == "40.0 (-5.0)"


def test_without_roles_or_costs_there_are_no_such_columns():
    for given in (None, roles(["a", "b"])):
        table = columns.models_table({"a": RATINGS["teacher"], "b": RATINGS["new_s0"]}, roles=given)
        assert {c.group for c in table.columns if c.show != "never"} == {"accuracy", "sizes", "cost"}
        assert "gap" not in table.csv() and "params (M)" not in table.texts()[0]
    only = roles(["plain", "new"])
    row = shown(columns.models_table({"plain": RATINGS["plain_s0"], "new": RATINGS["new_s0"]}, roles=only))["new"]
    assert row["AP gain"].startswith("+") and "AP closed (%)" not in row


def test_times_stand_a_row_a_runtime_and_batch():
    head, rows = columns.latency_table(COSTS).texts()
    assert head == ("model", "runtime", "batch", "pre (ms)", "inference (ms)", "post (ms)", "total (ms)")
    assert [row[:3] for row in rows] == [
        ("teacher", "PyTorch", "1"),
        ("teacher", "ONNX Runtime", "1"),
        ("new_s0", "PyTorch", "1"),
    ]
    assert rows[0][3] == "1.25 (1.00-150.00)"


def test_devices_stand_beside_times_where_they_differ():
    other = {**COSTS["teacher"], "latency": [{**COSTS["teacher"]["latency"][0], "device": "another"}]}
    head, rows = columns.latency_table({**COSTS, "other": other}).texts()
    assert head[-1] == "device" and rows[-1][-1] == "another" != rows[0][-1]


def test_classes_stand_below_each_other():
    rows = shown(columns.classes_table(RATINGS))
    assert list(rows) == ["x", "y", "z"] and rows["z"]["teacher"] == "-" and rows["z"]["objects"] == "0"
    assert rows["y"]["new_s0"] == f"{RATINGS['new_s0'].classes[1].ap50:.1f}"
    assert columns.classes_table({}).names == ()


def test_recipes_stand_with_mean_spread_gain_verdict_and_gap():
    judged = {name: judge(*pair) for name, pair in FOUND.items()}
    new, plain = ([judged[f"{arm}_s{i}"] for i in (0, 1)] for arm in ("new", "plain"))
    found = bootstrap(TRUTH, new, plain, draws=50)
    rows = {row["recipe"]: row for row in columns.recipes_table(ROLES, RATINGS, {"new": found}).rows()}
    assert list(rows) == ["teacher", "plain", "new"]
    aps = np.array([[RATINGS[f"{arm}_s{i}"].ap for i in (0, 1)] for arm in ("plain", "new")])
    row, paired = rows["new"], aps[1] - aps[0]
    assert (row["seeds"], row["ap"], row["ap_sd"]) == (2, *map(pytest.approx, (aps[1].mean(), aps[1].std(ddof=1))))
    assert row["gain_ap"] == row["paired_ap"] == pytest.approx(paired.mean()) == pytest.approx(found.ap.difference)
    assert row["paired_ap_sd"] == pytest.approx(paired.std(ddof=1))
    assert (row["low_ap"], row["verdict_ap"], row["high_ap50"]) == (found.ap.low, "ahead", found.ap50.high)
    assert row["closed_ap"] == pytest.approx(paired.mean() / (RATINGS["teacher"].ap - aps[0].mean()))
    assert rows["plain"]["gain_ap"] is None and rows["teacher"]["ap_sd"] is None


def test_without_a_baseline_recipes_have_no_gain():
    lone = roles(["new_s0", "new_s1"])
    assert columns.recipes_table(lone, RATINGS).texts()[0] == ("recipe", "seeds", "AP", "sd", "AP50", "sd", "APs", "sd")


def test_the_gap_says_why_there_is_no_share():
    rows = shown(columns.gap_table(columns.gap(ROLES, ROLES.students[0], RATINGS)))
    assert list(rows)[:4] == ["AP", "AP50", "AP75", "AP small"] and list(rows)[-3:] == ["x", "y", "z"]
    assert rows["AP"]["gap closed"] == rows["AP small"]["gap closed"] and rows["AP"]["gap closed"].endswith(" %")
    assert rows["AP medium"]["gap closed"] == rows["z"]["gap closed"] == "no objects"
    assert columns.gap(roles(["a"]), roles(["a"]).students[0], {}) is None


def test_every_heading_has_its_own_figure():
    heads = {"AP": "ap", "AP50": "ap50", "AP75": "ap75", "VOC07": "voc07", "VOC12": "voc12"}
    heads |= {"precision": "precision", "recall": "recall", "F1": "f1"}
    figures = {key: 10.0 + i for i, key in enumerate(heads.values())}
    row = shown(columns.models_table({"a": figures}))["a"]
    assert {head: row[head] for head in heads} == {head: f"{figures[key]:.1f}" for head, key in heads.items()}
