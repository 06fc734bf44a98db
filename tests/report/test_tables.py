import csv
import io
import math

import pytest

from ds2d2_yolo.errors import UserError
from ds2d2_yolo.report.coco import Evaluation
from ds2d2_yolo.report.tables import comparison

TEACHER = Evaluation(9_420_000, 80, 900, 42.0, 70.0, 44.0, 30.0, 50.0, 60.0, ())
ROWS = {
    "m": TEACHER,
    "plain": {"parameters": 2_510_000, "ap50": 55.25, "ap": 30.04, "ap_small": math.nan},
    "distilled": {"parameters": None, "ap50": 70.04, "ap": 42.5, "ap_small": 29.0},
}


def test_plain_text_shows_values_and_gaps_in_aligned_columns():
    lines = str(comparison(ROWS, teacher="m")).splitlines()
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
    assert "(" not in str(table).replace("parameters (M)", "")
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
    assert float(plain["parameters"]) == pytest.approx(2.51) and plain["ap_small"] == plain["ap_small_gap"] == ""
    assert distilled["parameters"] == "" and float(distilled["ap50_gap"]) == pytest.approx(0.04)


def test_rows_may_come_from_a_csv_file():
    text = {"parameters": "1000000", "ap50": "12.5", "ap": "", "ap_small": "3"}
    assert comparison({"a": text}).cells[0] == ((1.0, None), (12.5, None), (None, None), (3.0, None))


def test_write_makes_both_files(tmp_path):
    table = comparison(list(ROWS.items()), teacher="m")
    paths = table.write(tmp_path / "new" / "folder", "demo")
    assert [p.name for p in paths] == ["demo.csv", "demo.md"]
    assert paths[0].read_text() == table.csv() and paths[1].read_text() == table.markdown()


def test_errors_name_the_thing(tmp_path):
    with pytest.raises(UserError, match="'x' is none of"):
        comparison(ROWS, teacher="x")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        comparison(ROWS).write(tmp_path / "file")
