"""Charts as SVG: scales, known places, hostile texts, and what is left out."""

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds2d2_yolo.report.charts import Axis, Bar, Point, Series, axis, bars, curves, marker, scatter, style

HOSTILE = '<script>alert("1")</script>&\'"]]>'
numbers = st.floats(-1e6, 1e6, allow_nan=False)


def elements(markup, tag, kind=None):
    """The elements of a chart by tag and one of their classes; a chart is well-formed XML."""
    found = ElementTree.fromstring(str(markup)).iter(tag)
    return [e for e in found if kind is None or kind in (e.get("class") or "").split()]


def texts(markup):
    return ["".join(t for t in [e.text or ""]) for e in elements(markup, "text")]


def rights(markup):
    """(left, right) ends of the bars by their title."""
    found = {}
    for bar in elements(markup, "path", "up") + elements(markup, "path", "down"):
        left, right = map(float, re.fullmatch(r"M(\S+) \S+H([^V]+)V.*", bar.get("d")).groups())
        found[bar.find("title").text] = (left, right)
    return found


def test_an_axis_maps_its_ends_and_middle():
    scale = Axis(0, 100, 40, 240, ())
    assert [scale(v) for v in (0, 50, 100, -5, 105)] == [40, 140, 240, 40, 240]
    assert Axis(1, 100, 0, 200, (), log=True)(10) == pytest.approx(100)


@settings(deadline=None)
@given(st.lists(numbers, max_size=8), st.booleans(), st.booleans())
def test_an_axis_holds_its_values_and_has_few_ticks(values, zero, log):
    scale = axis(values, 0, 300, zero, log)
    assert scale.low < scale.high
    assert all(scale.low <= v <= scale.high for v in values)
    assert not zero or scale.log or scale.low <= 0 <= scale.high
    assert 1 <= len(scale.ticks) <= 12 and all(scale.low <= t <= scale.high for t in scale.ticks)
    assert all(math.isfinite(scale(v)) for v in values)


def test_an_axis_is_logarithmic_only_where_asked_and_useful():
    scale = axis([1, 200], 0, 1, log=True)
    assert scale.log and scale.ticks == (1, 2, 5, 10, 20, 50, 100, 200)
    assert axis([1, 1e5], 0, 1, log=True).ticks == (1, 10, 100, 1000, 10000, 100000)
    assert not axis([1, 200], 0, 1).log
    assert not axis([1, 5], 0, 1, log=True).log
    assert not axis([0, 200], 0, 1, log=True).log


def test_an_axis_stays_within_its_ends():
    assert axis([95, 99.9], 0, 1, ends=(0, 100)).high == 100
    assert axis([1, 50], 0, 1).low == 0  # nothing negative for what is not


def test_curves_go_through_their_points():
    chart = curves([Series("a", ((0, 100), (50, 50), (100, 0)))], "label", "recall", "precision")
    (line,) = elements(chart, "path", "line")
    xs, ys = zip(*(map(float, pair.split()) for pair in line.get("d")[1:].split("L")), strict=True)
    assert xs[1] == pytest.approx((xs[0] + xs[2]) / 2) and ys[1] == pytest.approx((ys[0] + ys[2]) / 2)
    assert ys[0] < ys[2]  # precision 100 stands above 0
    assert {"recall", "precision", "100", "0"} <= set(texts(chart))


def test_points_on_a_straight_line_are_not_written():
    flat = curves([Series("a", tuple((i, 70) for i in range(101)))], "label", "", "")
    assert elements(flat, "path", "line")[0].get("d").count("L") == 1


def test_a_curve_without_values_is_left_out():
    assert not elements(curves([Series("a", ((0, None), (1, math.nan)))], "l", "", ""), "path", "line")


def test_models_beyond_the_colours_are_dashed():
    assert len({style(i) for i in range(24)}) == 24
    looks = {(style(i).split()[0], marker(role, i)) for i in range(24) for role in ("student", "")}
    assert len(looks) == 48  # marks have no dashes


def test_a_scatter_marks_every_model_by_its_role():
    points = [Point("t", 30, 50, "teacher", 0, 28, 35), Point("s", 10, 40, "student", 1), Point("?", 20, 45, "", 2)]
    chart = scatter(points, "label", "ms", "AP")
    marks = elements(chart, "path", "mark")
    assert [m.find("title").text for m in marks] == ["t", "s", "?"] and len({m.get("d") for m in marks}) == 3
    assert len(elements(chart, "path", "whisker")) == 1
    x = [float(re.search(r"translate\((\S+) ", m.get("transform"))[1]) for m in marks]
    assert x[1] < x[2] < x[0]
    assert {"t", "s", "?"} <= set(texts(chart))


def test_models_that_are_nearly_equal_do_not_lie_far_apart():
    chart = scatter([Point("a", 10, 37.512345), Point("b", 20, 37.512346)], "label", "ms", "AP")
    places = [mark.get("transform") for mark in elements(chart, "path", "mark")]
    upper, lower = (float(re.search(r"translate\(\S+ (\S+)\)", place)[1]) for place in places)
    assert abs(upper - lower) < 1
    shown = [e.text for e in elements(chart, "text", "end")]
    assert len(shown) > 1 and len(set(shown)) == len(shown)


def test_names_in_a_scatter_do_not_cover_each_other():
    chart = scatter([Point(f"model number {i}", 10, 40, "", i) for i in range(9)], "label", "ms", "AP")
    assert len(elements(chart, "path", "mark")) == 9
    assert len([t for t in texts(chart) if t.startswith("model")]) <= 4  # right, left, above, below


def test_a_name_stands_nearest_to_its_own_mark():
    points = [Point("upper", 10, 50), Point("lower", 10, 49.9), Point("far", 80, 10)]
    assert "upper" not in texts(scatter(points, "label", "ms", "AP"))


def test_bars_start_at_zero_and_are_as_long_as_their_values():
    ends = rights(bars([Bar("a", 10.0), Bar("b", -5.0), Bar("c", 0.0)], "label"))
    assert ends["a: +10.0"][0] == ends["b: -5.0"][1] == ends["c: +0.0"][0]
    length = {k: b - a for k, (a, b) in ends.items()}
    assert length["a: +10.0"] == pytest.approx(2 * length["b: -5.0"], abs=0.2)
    assert length["c: +0.0"] == 0.5


def test_bars_stop_at_the_ends_but_say_their_value():
    ends = rights(bars([Bar("a", 200.0), Bar("b", 1e9)], "label", " %", 0, ends=(-100, 200)))
    assert ends["a: +200 %"] == ends["b: +1000000000 %"]


def test_an_unknown_bar_says_why():
    chart = bars([Bar("a", None, "no lead"), Bar("b", 1.0)], "label")
    assert "no lead" in texts(chart) and list(rights(chart)) == ["b: +1.0"]


def test_a_bar_whose_interval_holds_zero_is_pale():
    chart = bars([Bar("a", 1.0, low=-1.0, high=3.0), Bar("b", 2.0, low=1.0, high=3.0), Bar("c", 1.0)], "label")
    assert [p.find("title").text[0] for p in elements(chart, "path", "pale")] == ["a"]


def test_a_bar_that_says_why_it_has_no_interval_is_pale():
    chart = bars([Bar("a", 25.0, "too few images"), Bar("b", 2.0, low=1.0, high=3.0)], "label")
    assert [p.find("title").text for p in elements(chart, "path", "pale")] == ["a: +25.0 (too few images)"]


@given(st.lists(st.floats(-150, 300), min_size=1, max_size=4), st.integers(1, 30), st.sampled_from([" %", ""]))
def test_the_ticks_of_bars_do_not_touch(values, letters, unit):
    chart = bars([Bar("W" * letters, value) for value in values], "label", unit, 0, (-100, 200), (100.0,))
    ticks = sorted((float(e.get("x")), e.text) for e in elements(chart, "text", "mid"))
    assert len(ticks) >= 2
    for (left, a), (right, b) in zip(ticks, ticks[1:], strict=False):
        assert right - left > 6 * (len(a) + len(b)) / 2


@pytest.mark.parametrize(
    "chart",
    [
        curves([Series(HOSTILE, ((0, 1), (1, 2)))], HOSTILE, HOSTILE, HOSTILE),
        scatter([Point(HOSTILE, 1, 1)], HOSTILE, HOSTILE, HOSTILE),
        bars([Bar(HOSTILE, 1.0), Bar("b", None, HOSTILE)], HOSTILE, HOSTILE),
    ],
)
def test_hostile_names_stay_text(chart):
    assert not elements(chart, "script") and "<script" not in str(chart)
    assert any(HOSTILE in (e.text or "") for e in elements(chart, "title"))
    assert ElementTree.fromstring(str(chart)).get("aria-label") == HOSTILE


@pytest.mark.parametrize("name", ["x" * 500, "漢字" * 100, "…" * 60])
def test_long_names_are_cut_in_the_middle(name):
    label = next(t for t in texts(bars([Bar(name, 1.0)], "label")) if "…" in t)
    assert len(label) <= 20 and label[0] == name[0] and label[-1] == name[-1]


def test_charts_without_rows_are_empty_frames():
    for chart in (curves([], "l", "", ""), scatter([], "l", "", ""), bars([], "l")):
        assert ElementTree.fromstring(str(chart)).get("role") == "img"
