import csv
import io
import json
import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds2d2_yolo.errors import UserError
from ds2d2_yolo.report.tables import Column, Table, comparison, score

TEACHER = SimpleNamespace(parameters=9_420_000, ap=42.0, ap50=70.0, ap_small=30.0)
ROWS = {
    "m": TEACHER,
    "plain": {"parameters": 2_510_000, "ap50": 55.25, "ap": 30.04, "ap_small": math.nan},
    "distilled": {"parameters": None, "ap50": 70.04, "ap": 42.5, "ap_small": 29.0},
}


@pytest.mark.parametrize(
    "value, text", [(0.873, "0.87"), (0.1, "0.10"), (0.0312, "0.031"), (0.000264, "0.00026"), (0.0, "0"), (1.0, "1.00")]
)
def test_scores_have_two_digits_that_count(value, text):
    assert score(value) == Column("at conf", "confidence", None).text(value) == text


def test_plain_text_shows_values_and_gaps_in_aligned_columns():
    lines = comparison(ROWS, teacher="m").text(100).splitlines()
    assert lines[0].split() == ["model", "parameters", "(M)", "AP50", "AP50-95", "APsmall"]
    assert lines[2].split() == ["m", "(teacher)", "9.42", "70.0", "42.0", "30.0"]
    assert lines[3].split() == ["plain", "2.51", "(-6.91)", "55.2", "(-14.8)", "30.0", "(-12.0)", "-"]
    assert lines[4].split() == ["distilled", "-", "70.0", "(+0.0)", "42.5", "(+0.5)", "29.0", "(-1.0)"]
    assert len({len(line) for line in lines}) == 1


def test_no_gap_shows_as_minus_zero():
    rows = {"a": TEACHER, "b": {"parameters": 9_420_000, "ap50": 69.999, "ap": 42, "ap_small": 30}}
    assert "-0.0" not in str(comparison(rows, teacher="a"))


def test_without_a_teacher_there_are_no_gaps():
    table = comparison(ROWS)
    assert "(" not in str(table).replace("parameters (M)", "") and "gap" not in table.csv()
    assert all(gap is None for row in table.cells for _, gap in row)


def test_a_row_called_teacher_is_not_called_so_twice():
    assert "teacher (teacher)" not in str(comparison({"teacher": TEACHER, "b": TEACHER}, teacher="teacher"))


def test_markdown_is_a_table_of_the_same_cells():
    lines = comparison({**ROWS, "a|b": TEACHER}, teacher="m").markdown().splitlines()
    assert lines[0] == "| model | parameters (M) | AP50 | AP50-95 | APsmall |"
    assert lines[1] == "| --- | ---: | ---: | ---: | ---: |"
    assert lines[3] == "| plain | 2.51 (-6.91) | 55.2 (-14.8) | 30.0 (-12.0) | - |"
    assert lines[5].startswith("| a\\|b | 9.42 (+0.00) |")


def test_csv_keeps_unrounded_numbers_in_columns_of_their_own():
    m, plain, distilled = csv.DictReader(io.StringIO(comparison(ROWS, teacher="m").csv()))
    assert m["model"] == "m" and float(m["ap50"]) == 70 and m["ap50_gap"] == ""
    assert float(plain["ap"]) == 30.04 and float(plain["ap_gap"]) == pytest.approx(-11.96)
    assert plain["parameters"] == "2510000" and plain["ap_small"] == plain["ap_small_gap"] == ""
    assert distilled["parameters"] == "" and float(distilled["ap50_gap"]) == pytest.approx(0.04)


def test_rows_may_come_from_a_csv_file():
    text = {"parameters": "1000000", "ap50": "12.5", "ap": "", "ap_small": "3"}
    assert comparison({"a": text}).cells[0] == ((1e6, None), (12.5, None), (None, None), (3.0, None))


def test_write_makes_three_files(tmp_path):
    table = comparison(list(ROWS.items()), teacher="m")
    paths = table.write(tmp_path / "new" / "folder", "demo")
    assert [p.name for p in paths] == ["demo.csv", "demo.md", "demo.json"]
    assert [p.read_text(encoding="utf-8") for p in paths] == [table.csv(), table.markdown(), table.json()]


def test_errors_name_the_thing(tmp_path):
    with pytest.raises(UserError, match="'x' is none of"):
        comparison(ROWS, teacher="x")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        comparison(ROWS).write(tmp_path / "file")


COLUMNS = (
    Column("a", "a", group="one"),
    Column("b", "b", 0, 1e6, group="one"),
    Column("words", "words", group="two", show="known"),
    Column("nothing", "nothing", group="two", show="known"),
    Column("hidden", "hidden", group="two", show="never"),
    Column("c", "c", 2, group="three", signed=True),
)
TABLE = Table(COLUMNS, ("x", "y"), ((1.25, 2_000_000, "ok", None, 7, 0.001), (None, 10, None, None, 8, -0.5)))


def blocks(width, table=TABLE):
    return [block.splitlines() for block in table.text(width).split("\n\n")]


def test_a_wide_terminal_shows_one_block_and_a_narrow_one_a_block_a_group():
    assert [line.split() for line in blocks(80)[0]] == [
        ["model", "a", "b", "words", "c"],
        ["-----", "---", "-", "-----", "-----"],
        ["x", "1.2", "2", "ok", "+0.00"],
        ["y", "-", "0", "-", "-0.50"],
    ]
    narrow = blocks(16)
    assert [block[0] for block in narrow] == ["one", "two", "three"]
    assert [block[1].split() for block in narrow] == [["model", "a", "b"], ["model", "words"], ["model", "c"]]
    assert [block[0] for block in blocks(21)] == ["one, two", "three"]


@given(st.integers(10, 60))
def test_every_column_is_shown_once_and_lines_fit_where_one_column_does(width):
    found = blocks(width)
    headings = [word for block in found for word in block[len(found) > 1].split() if word != "model"]
    assert headings == ["a", "b", "words", "c"]
    assert all(len(line) <= max(width, len("model  words")) for block in found for line in block)


def test_a_group_wider_than_the_terminal_is_torn():
    assert [block[1].split() for block in blocks(11)][:2] == [["model", "a"], ["model", "b"]]


def test_files_hold_all_columns_and_markdown_a_table_a_group():
    assert TABLE.csv().splitlines() == [
        "model,a,b,words,nothing,hidden,c",
        "x,1.25,2000000,ok,,7,0.001",
        "y,,10,,,8,-0.5",
    ]
    rows = json.loads(TABLE.json())
    assert rows[0] == {"model": "x", "a": 1.25, "b": 2_000_000, "words": "ok", "nothing": None, "hidden": 7, "c": 0.001}
    parts = TABLE.markdown().split("\n\n")
    assert parts[::2] == ["**one**", "**two**", "**three**"]
    assert parts[3].splitlines() == ["| model | words |", "| --- | --- |", "| x | ok |", "| y | - |"]
    assert TABLE.texts() == (
        ("model", "a", "b", "words", "c"),
        (("x", "1.2", "2", "ok", "+0.00"), ("y", "-", "0", "-", "-0.50")),
    )


def test_marks_stand_behind_names_and_long_names_lose_their_middle():
    long = "/a/very/long/way/to/the/run/plain/weights/best.pt"
    table = Table(COLUMNS[:1], (long, "m"), ((1,), (2,)), teacher="m", marks=((long, "baseline"), ("m", "teacher")))
    lines = table.text(60).splitlines()
    assert lines[2].startswith("/a/very/l.../best.pt (baseline)  ") and lines[3].startswith("m (teacher) ")
    alike = Table(COLUMNS[:1], (long, long.replace("run", "run2")), ((1,), (2,)))
    assert long in alike.text(60)


def test_hostile_names_stay_in_their_cells():
    name = "a\n\x1b[31m|<b>`x"
    table = comparison({name: TEACHER})
    assert "\x1b" not in str(table) and len(str(table).splitlines()) == 3
    assert table.markdown().splitlines()[2].startswith("| a??[31m\\|&lt;b>\\`x |")
    assert next(csv.DictReader(io.StringIO(table.csv())))["model"] == name
    assert json.loads(table.json())[0]["model"] == name


def test_a_table_without_rows_is_a_heading(tmp_path):
    table = Table(COLUMNS[:2], (), ())
    assert table.text(80).splitlines()[0].split() == ["model", "a", "b"] and table.json() == "[]\n"
    assert Table(COLUMNS, ("\udcff",), ((None,) * 6,)).write(tmp_path)[0].exists()  # a file name that is no UTF-8
