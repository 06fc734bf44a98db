"""What the README says was measured is what the rows of the benchmarks say."""

import json
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


@pytest.fixture(scope="module")
def variants():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield runpy.run_path(str(ROOT / "benchmarks" / "variants.py"))


def test_the_table_of_settings_is_that_of_the_results(variants, gains):
    text = (ROOT / "docs/recipes.md").read_text()
    table = variants["table"](gains["read"](ROOT / "benchmarks/results"))
    assert variants["with_table"](text, table, variants["MARKS"]) == text
    assert all(text.count(mark) == 1 for mark in variants["MARKS"])


def test_a_variant_stands_beside_the_default_of_its_teacher_and_seeds(variants):
    def cells(line):
        return [cell.strip() for cell in line.strip("|").split("|")][4:]

    common = {**known_rows()[0], "teacher": "T", "ap": 1.0}
    base = {"teacher": "T", "amplifier_epochs": 8}
    arms = [
        ("plain", {}, 0, 10.0),
        ("plain", {}, 1, 12.0),
        ("ds2d2", base, 0, 13.0),
        ("ds2d2", base, 1, 14.0),
        ("other", base | {"disw": False}, 1, 15.0),
        ("other", base | {"disw": False}, 0, 15.0),
        ("other", base | {"disw": False}, 2, 90.0),
        ("none", {"teacher": "T", "im_high": 0.0}, 1, 13.0),
        ("along", {"teacher": "T", "amplifier": "alongside"}, 0, 13.0),
        ("start", {"teacher": "T", "ex_low": 0, "ex_high": 0, "im_full": 0, "im_high": 0}, 0, 1.0),
        ("alone", base | {"im_full": 2}, 2, 1.0),  # no default run of its seed
        ("distill_model", {"distill_model": "T"}, 0, 1.0),
    ]
    rows = [{**common, "arm": a, "settings": json.dumps(s), "seed": n, "ap50": ap} for a, s, n, ap in arms]
    rows[7]["ap"] = 0.97  # shown as no difference, not as -0.0
    lines = variants["table"](pd.DataFrame(rows)).splitlines()[2:]
    assert [cells(line) for line in lines] == [
        ["`disw=False`", "11.0", "13.5, constant", "15.0", "+1.5 (+1.0, +2.0)", "+0.0"],
        ["`im_high=0`", "12.0", "14.0, constant", "13.0", "-1.0", "+0.0"],
        ["`amplifier=alongside`", "10.0", "13.0, constant", "13.0", "+0.0", "+0.0"],
        ["`ex_low=0 ex_high=0 im_full=0 im_high=0`", "10.0", "13.0, constant", "1.0", "-12.0", "+0.0"],
    ]
    fading = {**common, "arm": "fade", "settings": json.dumps(base | {"distill_final": 0}), "seed": 0, "ap50": 14.0}
    lines = variants["table"](pd.DataFrame([*rows, fading])).splitlines()[2:]
    assert cells(lines[0]) == ["`distill_final=1`", "10.0", "14.0", "13.0", "-1.0", "+0.0"]
    assert cells(lines[1])[:3] == ["`distill_final=1 disw=False`", "10.0", "14.0"]
    assert [cells(line)[0] for line in lines if "ex_low=0" in line] == ["`ex_low=0 ex_high=0 im_full=0 im_high=0`"]
    other = {**fading, "teacher": "another", "settings": json.dumps(base | {"disw": False, "distill_final": 0})}
    assert variants["table"](pd.DataFrame([fading, other])).count("\n") == 1
    bare = {**fading, "student": "a.yaml", "settings": json.dumps(base | {"distill_final": 0, "inherit": True})}
    for student, beside in (("a.yaml from coco", True), ("b.yaml from coco", False)):
        lines = variants["table"](pd.DataFrame([{**fading, "student": student}, bare | {"ap50": 15.0}])).splitlines()[
            2:
        ]
        assert [cells(line) for line in lines] == [["`inherit=True`", "", "14.0", "15.0", "+1.0", "+0.0"]] * beside
    assert not any("nan" in line for line in lines)
