"""The report as one HTML file: what it says, and that it needs nothing else."""

import base64
import hashlib
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from ds2d2_yolo.errors import UserError
from ds2d2_yolo.report.examples import Box, Illustration
from ds2d2_yolo.report.page import Model, Recovery, Report, Share, render, write_report
from tests.helpers.reports import HOSTILE, example, full_report, rating

VOID = {"meta", "link", "br", "img"}


@pytest.fixture
def report():
    return full_report()


class Page(HTMLParser):
    """Elements (tag, attributes, text) of a page; raises where its tags are not in balance."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(page.decode())
        assert not self.open

    def handle_starttag(self, tag, attrs):
        element = [tag, dict(attrs), ""]
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.elements.append([tag, dict(attrs), ""])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for element in self.open:
            element[2] += data

    def of(self, tag):
        return [(attrs, " ".join(text.split())) for name, attrs, text in self.elements if name == tag]

    def rows(self, caption):
        """The rows of the table with this caption, as texts."""
        table = next(text for _, text in self.of("table") if text.startswith(caption))
        start = next(i for i, e in enumerate(self.elements) if e[0] == "table" and " ".join(e[2].split()) == table)
        rows = []
        for name, _, text in self.elements[start + 1 :]:
            if name == "table":
                break
            if name == "tr":
                rows.append([])
            elif name in ("th", "td"):
                rows[-1].append(" ".join(text.split()))
        return rows


def test_the_page_needs_nothing_else(report):
    raw = render(report)
    page = Page(raw)
    for tag, attrs, _ in page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert re.match(r"data:|#", attrs.get(name) or "#"), (tag, attrs)
        assert not [name for name in attrs if name.startswith("on")]
    (_, style), (_, script) = page.of("style")[0], page.of("script")[0]
    assert "url(" not in style and "@import" not in style and "fetch" not in script
    assert raw.startswith(b"<!DOCTYPE html>")


def test_the_policy_allows_the_pages_own_script_only(report):
    page = Page(render(report))
    policy = next(attrs["content"] for attrs, _ in page.of("meta") if "http-equiv" in attrs)
    (script,) = [text for name, _, text in page.elements if name == "script"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'") and f"script-src 'sha256-{digest}'" in policy


def test_tables_hold_the_figures_with_the_gap_to_the_teacher(report):
    head, *rows = Page(render(report)).rows("Accuracy")
    assert head == ["model", "AP", "AP50", "AP75", "AR at 100", "AR at 300", "F1", "at confidence"]
    assert rows[0] == ["big teacher", "60.0", "65.0", "55.0", "61.0", "62.0", "80.0", "0.25"]
    assert rows[2] == [
        "small student",
        "45.0-15.0",
        "50.0-15.0",
        "40.0-15.0",
        "46.0-15.0",
        "47.0-15.0",
        "65.0-15.0",
        "0.25",
    ]


def test_the_gap_to_a_teacher_of_several_seeds_is_to_their_mean(report):
    second = Model("other teacher", "teacher", rating(50), group=report.models[0].group)
    _, *rows = Page(render(replace(report, models=(*report.models, second)))).rows("Accuracy")
    assert [row[1] for row in rows] == ["60.0", "40.0-15.0", "45.0-10.0", "50.0"]


def test_what_no_model_knows_has_no_column_and_what_one_lacks_a_dash(report):
    assert "AP small" not in render(report).decode()
    models = (replace(report.models[0], rating=rating(60, ap_small=33.0, ap_large=math.nan)), *report.models[1:])
    head, *rows = Page(render(replace(report, models=models))).rows("By size")
    assert head == ["model", "AP small"] and [row[1] for row in rows] == ["33.0", "–", "–"]


def test_the_best_of_a_column_is_marked(report):
    page = Page(render(report))
    best = [text for attrs, text in page.of("td") if attrs.get("class") == "best"]
    assert "60.0" in best and "2.00" in best and "9.00" not in best
    assert "0.25" not in best and "5.5" not in best  # a confidence is not good or bad, equal values have no best


def test_what_looks_the_same_has_no_best(report):
    models = [replace(m, rating=rating(ap)) for m, ap in zip(report.models, (40.04, 40.01, 40.0), strict=True)]
    best = [text for attrs, text in Page(render(replace(report, models=models))).of("td") if "best" in str(attrs)]
    assert "40.0" not in best and best
    models[0] = replace(models[0], rating=rating(40.06))
    best = [text for attrs, text in Page(render(replace(report, models=models))).of("td") if "best" in str(attrs)]
    assert "40.1" in best


def test_latency_has_a_row_for_each_runtime(report):
    rows = Page(render(report)).rows("Latency")[1:]
    assert len(rows) == 6
    assert rows[0][:3] == ["big teacher", "PyTorch", "1"] and rows[0][4] == "30.0027.00 to 33.00"
    assert rows[1][1] == "ONNX Runtime"


def test_what_distillation_bought(report):
    text = render(report).decode()
    rows = Page(render(report)).rows("Student minus baseline")
    assert rows[1] == ["small", "plain", "AP", "+5.00", "-0.50 to +9.00", "within noise"]
    assert "with 95 % interval" in text and "with 90 % interval" in render(replace(report, level=0.9)).decode()
    assert "45.0 ± 0.3" in text and "no lead" in text and "25 %" in text and "A note." in text
    assert "on 3 of 6 images, more on 1 and as many on 2" in " ".join(text.split())


def bar_titles(report):
    found = re.findall(r'<path class="((?:up|down)[^"]*)"[^>]*><title>([^<]*)</title>', render(report).decode())
    return [title for _, title in found], [title for kind, title in found if "pale" in kind]


def test_runtimes_other_than_pytorch_are_named_as_they_are(report):
    first, *rest = report.models
    other = {**first.cost, "latency": [{**first.cost["latency"][1], "runtime": "TensorRT"}]}
    assert "hollow: ONNX Runtime." in render(report).decode()
    text = render(replace(report, models=(replace(first, cost=other), *rest))).decode()
    assert "hollow: ONNX Runtime, TensorRT." in text


def test_gain_by_class_is_student_minus_baseline(report):
    titles, pale = bar_titles(report)
    assert titles[1:] == ["ship: +5.0 (-1.0 to +9.0)", "car: +5.0 (+2.0 to +8.0)"] and pale == titles[1:2]


def test_gain_by_class_is_the_mean_over_seeds(report):
    seeds = tuple(Model(f"s{i}", "student", rating(45 + i), group="s") for i in range(3))
    more = replace(report, models=(Model("plain2", "baseline", rating(42)), *report.models[1:2], *seeds), intervals={})
    assert bar_titles(more)[0][1:] == ["ship: +5.0", "car: +5.0"]  # 46 - 41
    assert "Mean of 3 seeds." in render(more).decode()


def test_a_class_of_too_few_images_does_not_look_sure(report):
    few = {"small": {"0": {"low": None, "high": None}, "1": {"low": 2.0, "high": 8.0}}}
    titles, pale = bar_titles(replace(report, intervals=few))
    assert pale == ["ship: +5.0 (too few images for an interval)"] and titles[2] == "car: +5.0 (+2.0 to +8.0)"
    assert "too few images hold the class" in render(replace(report, intervals=few)).decode()
    assert "too few images" not in render(report).decode()
    none = {"small": {str(i): {"low": None, "high": None} for i in range(2)}}
    assert "Pale: too few images hold" in render(replace(report, intervals=none)).decode()


def test_of_many_classes_the_gap_shows_those_with_most_objects(report):
    names = tuple(f"c{i:02}" for i in range(60))  # c59 has the most objects
    models = tuple(replace(model, rating=rating(40 + i, names)) for i, model in enumerate(report.models))
    shares = (Share("AP", 60, 40, 45, 0.25), *(Share(name, 60, 40, 45, 0.5) for name in names))
    text = render(replace(report, models=models, recovered=(Recovery("small", shares),))).decode()
    chart = text.split("Gap recovered:")[1].split("</figure>")[0]
    shown = re.findall(r">(AP|c\d\d)</text>", chart)
    assert shown == ["AP", *names[21:]] and "The 21 classes with the fewest objects are left out." in chart


def test_whose_errors_are_counted_is_said(report):
    shown = Illustration((example(),), 3, 1, 2, "new_s0", "plain_s0", "Of several seeds the first stands here.")
    text = " ".join(render(replace(report, illustration=shown)).decode().split())
    assert "The student <bdi>new_s0</bdi> makes fewer errors than the baseline <bdi>plain_s0</bdi> on 3 of 6" in text
    assert "as many on 2. Of several seeds the first stands here." in text


def test_a_class_that_a_model_does_not_know_has_no_gain(report):
    models = (*report.models[:2], replace(report.models[2], rating=rating(45, names=("ship",))))
    assert len(bar_titles(replace(report, models=models))[0]) == 2


@pytest.mark.parametrize("field", ["model", "class", "file", "role", "text"])
def test_hostile_names_stay_text(report, field):
    first, *rest = report.models
    shown = example(HOSTILE if field == "file" else "a.png")
    if field == "text":
        panel = replace(shown.panels[2], boxes={"right": (Box((1, 1, 9, 9), HOSTILE),)})
        shown = replace(shown, panels=(panel,))
    first = replace(first, name=HOSTILE if field == "model" else "m", role=HOSTILE if field == "role" else "teacher")
    if field == "class":
        first, *rest = (replace(m, rating=rating(60, names=(HOSTILE, "car"))) for m in (first, *rest))
    raw = render(replace(report, models=(first, *rest), illustration=Illustration((shown,), 1)))
    page = Page(raw)
    assert len(page.of("script")) == 1 and not page.of("img")
    assert any(HOSTILE in text for _, _, text in page.elements)
    assert b"<script>hacked" not in raw and b"<img" not in raw


def test_a_file_name_that_is_no_text_is_written_as_an_escape(report, tmp_path):
    path = write_report(tmp_path / "r.html", replace(report, illustration=Illustration((example("\udcff.png"),), 1)))
    assert "\\udcff.png" in path.read_text(encoding="utf-8")


def test_pictures_are_left_out_until_the_file_is_small_enough(report, tmp_path):
    big = replace(example(), picture="data:image/jpeg;base64," + "A" * 100_000)
    many = replace(report, illustration=Illustration((big,) * 5, 5))
    path = write_report(tmp_path / "r.html", many, limit=300_000)
    assert 200_000 < path.stat().st_size <= 300_000
    text = path.read_text(encoding="utf-8")
    assert text.count("<image") == 2 and "3 of the pictures are left out" in text and "A note." in text
    assert write_report(tmp_path / "r.html", many).read_text(encoding="utf-8").count("<image") == 5


def test_thousands_of_classes_and_boxes_stay_bounded(report, tmp_path):
    names = tuple(f"class {i}" for i in range(3000))
    models = tuple(replace(m, rating=rating(50, names=names)) for m in report.models)
    crowd = {k: tuple(Box((i, i, i + 5, i + 5), k) for i in range(1000)) for k in ("right", "wrong", "missed")}
    panels = tuple(replace(p, boxes=crowd) for p in example().panels)
    shown = Illustration((replace(example(), panels=panels),) * 2, 2)
    path = write_report(tmp_path / "r.html", replace(report, models=models, illustration=shown))
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 5_000_000 and text.count("<image") == 2
    assert "classes with the fewest objects are left out" in text and "class 2999" in text


@pytest.mark.parametrize("models", [(), (Model("alone"),), (Model("a", "student"), Model("a", "student"))])
def test_a_report_of_little_is_a_page_too(models):
    page = Page(render(Report("d.yaml", models)))
    assert [text for _, text in page.of("h2")] == ["Results"]


def test_a_split_without_objects_is_a_page_too(report):
    empty = {"ap": None, "ap50": math.nan, "ar": {"100": None}, "curve": [None] * 101, "confidence": None}
    empty["classes"] = [{"index": 0, "name": "ship", "objects": 0, "ap": None, "ap50": None, "curve": [None] * 101}]
    models = tuple(replace(m, rating=empty) for m in report.models)
    text = render(replace(report, models=models, illustration=Illustration())).decode()
    assert "nan" not in text.lower().replace("nan(", "") and "None" not in text


def test_everything_can_be_read_aloud(report):
    page = Page(render(report))
    charts = [a for a, _ in page.of("svg") if a.get("class") in ("chart", "picture")]
    assert len(charts) >= 8 and all(a["role"] == "img" and a["aria-label"] for a in charts)
    assert all(a.get("scope") in ("row", "col") for a, _ in page.of("th"))
    assert page.of("html")[0][0]["lang"] == "en" and page.of("title")[0][1].endswith("my.yaml")


def test_the_file_replaces_an_older_one_and_leaves_no_draft(report, tmp_path):
    path = tmp_path / "new" / "r.html"
    assert write_report(path, report) == path
    write_report(path, report)
    assert [p.name for p in path.parent.iterdir()] == ["r.html"]


def test_where_nothing_can_be_written_one_line_says_so(report, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.html").mkdir()
    for path in (tmp_path / "file" / "r.html", tmp_path / "folder.html"):
        with pytest.raises(UserError, match="cannot write the report to") as caught:
            write_report(path, report)
        assert str(path) in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.html"]
