import json
import math

import pytest

from ds2d2_yolo.report.seeds import Group, difference, figure, groups, summarise


def found(names, paths=None):
    return {group.name: dict(zip(group.models, group.seeds, strict=True)) for group in groups(names, paths)}


@pytest.mark.parametrize(
    "tail", ["_s{}", "-s{}", ".s{}", "_seed{}", "-seed-{}", "_seed_{}", "-Seed{}", "_s{}.pt", "-s{}-0123abcd"]
)
def test_seeds_are_told_from_the_end_of_a_name(tail):
    names = ["teacher", *("student" + tail.format(i) for i in (0, 1, 12))]
    assert found(names) == {"teacher": {"teacher": None}, "student": dict(zip(names[1:], (0, 1, 12), strict=True))}


@pytest.mark.parametrize(
    "name", ["yolo11s", "student", "s", "classes3", "student_s1_long", "v8s3", "students4", "student-s-320"]
)
def test_what_is_no_seed_stays_in_the_name(name):
    assert found([name, "other"]) == {name: {name: None}, "other": {"other": None}}


def test_a_single_run_keeps_its_name_and_its_seed():
    assert found(["plain-s0", "student-s0"]) == {"plain-s0": {"plain-s0": 0}, "student-s0": {"student-s0": 0}}


def test_a_checkpoint_and_its_export_are_different_models():
    names = ["a_s0.pt", "a_s0.onnx", "a_s1.pt", "a_s1.onnx", "a.pt"]
    assert [(g.name, g.models) for g in groups(names)] == [
        ("a", ("a_s0.pt", "a_s1.pt")),
        ("a.onnx", ("a_s0.onnx", "a_s1.onnx")),
        ("a.pt", ("a.pt",)),
    ]


def test_no_two_groups_are_called_alike():
    names = ["a", "a_s0", "a_s1", "x_s0.pt", "x_s1.pt", "x", "x.pt"]
    assert [g.name for g in groups(names)] == ["a", "a_s*", "x_s*.pt", "x", "x.pt"]


def test_folders_may_hold_the_seed():
    paths = [f"runs/{arm}/seed{i}/weights/best.pt" for arm in ("plain", "student") for i in (0, 1)]
    expected = [("runs/plain", (0, 1), "plain"), ("runs/student", (0, 1), "student")]
    assert [(g.name, g.seeds, g.recipe) for g in groups(paths)] == expected
    one = [(g.name, g.seeds, g.recipe) for g in groups(["seed0", "seed1"], paths[2:])]
    assert one == [("student", (0, 1), "student")]
    assert [(g.name, g.recipe) for g in groups(["best.pt"], ["runs/mine/weights/best.pt"])] == [("best.pt", "mine")]
    assert [g.name for g in groups(["s0", "s1"])] == ["seeds"]


def test_the_same_seed_of_two_runs_is_not_one_recipe():
    names = ["a-s0-00000000", "a-s0-11111111", "a-s1-22222222"]
    assert [g.models for g in groups(names)] == [(name,) for name in names]
    assert len(groups(["x/a_s0", "y/a_s0", "y/a_s1"])) == 2
    both = ["a-s0-00000000", "a-s1-00000000", "a-s0-11111111", "a-s1-11111111"]
    found = groups(both, [f"runs/{name}/weights/best.pt" for name in both])  # one file's name
    assert [g.models for g in found] == [(both[0], both[1]), (both[2], both[3])]


def test_files_of_one_run_are_no_seeds():
    paths = [f"runs/student_s{s}/weights/{f}.pt" for s, f in ((0, "best"), (0, "last"), (1, "best"), (1, "epoch10"))]
    found = {group.seeds: group.models for group in groups(paths, paths)}
    assert found[0, 1] == (paths[0], paths[2])
    assert sorted(models for seeds, models in found.items() if seeds != (0, 1)) in (
        [(paths[1],), (paths[3],)],
        [(paths[3],), (paths[1],)],
    )


def test_figures_come_from_mappings_and_objects():
    class Row:
        ap = 3

    assert figure(Row, "ap") == figure({"ap": "3"}, "ap") == 3.0
    assert [figure({"ap": value}, "ap") for value in (None, "", math.nan)] == [None] * 3
    assert figure({}, "ap") is figure(Row, "ap50") is None


def test_mean_and_sample_deviation():
    summary = summarise([1, None, 3, math.nan, 5])
    assert (summary.values, summary.mean, summary.sd) == ((1, 3, 5), 3, 2) and str(summary) == "3.0 ± 2.0"
    assert summarise([4]).sd is None and str(summarise([4])) == "4.0"
    assert summarise([]).mean is None and str(summarise([])) == "-"


ROWS = {
    name: {"ap": ap} for name, ap in {"p0": 10, "p1": 12, "p2": 11, "d1": 14, "d0": 11, "d5": 20, "x": None}.items()
}
PLAIN = Group("p", ("p0", "p1", "p2"), (0, 1, 2), "p")
STUDENT = Group("d", ("d1", "d0", "d5"), (1, 0, 5), "d")


def test_differences_seed_by_seed():
    result = difference(STUDENT, PLAIN, ROWS)
    assert (
        result.difference == pytest.approx(4)
        and result.baseline.mean == 11
        and result.student.sd == pytest.approx(21**0.5)
    )
    assert result.seeds == (0, 1) and result.paired.values == (1, 2) and result.paired.sd == pytest.approx(0.5**0.5)
    assert str(result) == "+4.0 (seed 0: +1.0, seed 1: +2.0; +1.5 ± 0.7)"
    assert json.loads(json.dumps(result.as_dict()))["paired"]["mean"] == 1.5


def test_without_common_seeds_there_are_no_pairs():
    lone = Group("d5", ("d5",), (5,), "d")
    assert difference(lone, PLAIN, ROWS).paired.mean is None and str(difference(lone, PLAIN, ROWS)) == "+9.0"
    unseeded = Group("d1", ("d1",), (None,), "d")
    assert difference(unseeded, unseeded, ROWS).seeds == ()
    unknown = difference(Group("x", ("x",), (0,), "x"), PLAIN, ROWS)
    assert unknown.difference is None and unknown.seeds == () and str(unknown) == "-"
