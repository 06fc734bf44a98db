"""What the README says was measured is what the rows of the benchmarks say."""

import runpy
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def gains():
    return runpy.run_path(str(ROOT / "benchmarks" / "gains.py"))


@pytest.mark.parametrize("page", ["README.md", "benchmarks/results/README.md"])
def test_the_tables_on_the_pages_are_those_of_the_results(gains, page):
    text = (ROOT / page).read_text()
    shown = gains["settings"](gains["read"](ROOT / "benchmarks/results"))
    assert gains["with_table"](text, gains["table"](gains["today"](shown) if page == "README.md" else shown)) == text
    assert all(text.count(mark) == 1 for mark in gains["MARKS"])


def known_rows():
    common = {
        "run": "",
        "settings": "{}",
        "data": "sea",
        "student": "a.yaml",
        "epochs": 9,
        "imgsz": 64,
        "recipe": "r",
        "ap_small": 1.0,
    }
    arms = [("plain", 0, 10.0), ("plain", 1, 12.0), ("plain", 2, 90.0), ("ds2d2", 0, 13.0), ("ds2d2", 1, 14.0)]
    arms += [("fade", 1, 15.0)]
    rows = [
        {**common, "arm": arm, "seed": seed, "ap50": ap, "teacher": "T" * (arm != "plain")} for arm, seed, ap in arms
    ]
    rows[5]["settings"] = '{"distill_final": 0}'
    rows += [{**common, "arm": "teacher", "seed": 0, "ap50": 40.0, "teacher": "T", "epochs": "", "student": ""}]
    return rows + [{**common, "arm": "plain", "seed": 0, "ap50": 5.0, "epochs": 10}]  # nothing to compare it with


def test_a_table_of_known_rows(gains, tmp_path):
    def table(rows):
        return gains["table"](gains["settings"](rows))

    rows = known_rows()
    pd.DataFrame(rows).to_csv(tmp_path / "rows.csv", index=False)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    read = gains["read"](tmp_path)
    assert table(read).splitlines()[2:] == [
        "| sea | a | 64 | 9 | 40.0 | 11.0 |  | 13.5, constant | +2.5 (+3.0, +2.0) | 9% | 1.0 to 1.0 |",
        "| sea | a | 64 | 9 | 40.0 | 12.0 |  | 15.0 | +3.0 | 11% | 1.0 to 1.0 |",
    ]
    ahead = read.assign(ap50=read.ap50.where(read.arm != "teacher", 10.0))  # a teacher behind its students has no lead
    assert "| 10.0 | 11.0 |  | 13.5, constant | +2.5 (+3.0, +2.0) |  | 1.0 to" in table(ahead)
    fading = {**rows[5], "settings": '{"distill_final": 0, "im_high": 1}', "seed": 0, "ap50": 2.0}
    other = [{**rows[5], "teacher": "other", "ap50": 1.0}, fading]
    other += [{**rows[-2], "imgsz": 128, "ap50": 99.0}, {**rows[-2], "data": "land", "ap50": 99.0}]
    more = table(pd.concat([read, pd.DataFrame(other)]))
    assert [line.split("|")[8:10] for line in more.splitlines()[3:]] == [
        [" 15.0 ", " +3.0 "],
        [" 1.0 ", " -11.0 "],
        [" 2.0 ", " -8.0 "],
    ]
    assert more.splitlines()[3] == table(read).splitlines()[3]
    named = {**rows[5], "arm": "ds2d2", "seed": 2, "ap50": 91.0}  # another arm's name, the same settings
    assert "| 15.0 " not in table(pd.concat([read, pd.DataFrame([named])]))
    assert "| 53.0 | +2.0 (+3.0, +1.0)" in table(pd.concat([read, pd.DataFrame([named])]))
    again = read.assign(settings=read.settings.where(read.arm != "ds2d2", '{"distill_final": 1}'))
    assert table(again) == table(read)
    theirs = {**rows[3], "arm": "distill_model", "settings": "{d}", "teacher": "other", "ap50": 50.0}
    both = [theirs, {**theirs, "teacher": "T", "ap50": 7.0}]
    assert " 11.0 | 7.0 | 13.5, constant " in table(pd.concat([read, pd.DataFrame(both)]))
    with pytest.raises(ValueError, match="one seed twice"):
        table(pd.concat([read, pd.DataFrame(rows[:1])]))
    shown = gains["settings"](read)
    assert gains["table"](gains["today"](shown)).splitlines()[2:] == table(read).splitlines()[3:]
    gains["draw"](shown, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000
