import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds2d2_yolo.errors import UserError
from ds2d2_yolo.report.detections import Detections, Truth
from ds2d2_yolo.report.rating import rate
from ds2d2_yolo.report.recovery import recovered, roles, share


def who(names, paths=None, **given):
    found = roles(names, paths, **given)
    return tuple(g and g.name for g in (found.teacher, found.baseline)) + (tuple(g.name for g in found.students),)


def test_roles_are_told_from_names():
    assert who(["teacher", "plain", "student"]) == ("teacher", "plain", ("student",))
    assert who(["my-teacher.pt", "Baseline_s0", "Baseline_s1", "d_s0", "d_s1"]) == ("my-teacher.pt", "Baseline", ("d",))
    assert who(["simd-teacher14", "plain-s0-aeb57ae1", "ds2d2-s0-adeec368"])[:2] == (
        "simd-teacher14",
        "plain-s0-aeb57ae1",
    )
    assert who(["explain", "a"]) == (None, None, ("explain", "a"))


def test_roles_are_told_from_run_folders():
    paths = [f"runs/{kind}/weights/best.pt" for kind in ("teacher", "plain/seed0", "plain/seed1", "new/seed0")]
    assert who(paths) == (paths[0], "runs/plain", (paths[3],))
    assert who(["best.pt", "b"], ["runs/teacher/weights/best.pt", "b"])[0] == "best.pt"
    assert who(["runs/teacher-data/a/weights/best.pt", "b"])[0] is None


def test_a_student_of_a_teacher_is_none():
    names = ["teacher-m", "plain-no-teacher", "student-of-teacher-m", "distilled_from_teacher"]
    assert who(names) == (names[0], names[1], (names[2], names[3]))


def test_exports_of_the_teacher_are_not_a_second_teacher():
    found = roles(["teacher.onnx", "teacher.pt", "plain.pt"])
    assert found.teacher.models == ("teacher.pt",) and found.notes == ()


@pytest.mark.parametrize("role, seed", [("plain", ""), ("plain", "_s0"), ("teacher", "")])
def test_of_runs_called_alike_in_other_folders_none_is_chosen(role, seed):
    names = [f"lr1/{role}{seed}", "lr1/student", f"lr2/{role}{seed}", "lr2/student"]
    found = roles(names, [f"runs/{name}/weights/best.pt" for name in names])
    assert found.teacher is found.baseline is None and found.of("lr2/student") == ""
    assert f"'{names[0]}', '{names[2]}'" in found.notes[0]


@pytest.mark.parametrize(
    "names, paths",
    [
        (["teacher", "teacher.onnx", "plain", "plain.onnx", "student"], None),
        (
            ["teacher", "deployed/teacher.onnx", "plain", "plain.engine", "student"],
            ["runs/teacher/weights/best.pt", "deployed/teacher.onnx", "plain.pt", "plain.engine", "student.pt"],
        ),
        (
            ["r/teacher/weights/best.pt", "r/teacher/weights/last.pt", "plain", "r/plain/best.onnx", "student"],
            ["r/teacher/weights/best.pt", "r/teacher/weights/last.pt", "r/plain/best.pt", "r/plain/best.onnx", "s.pt"],
        ),
        (
            ["teacher", "teacher/best_int8.onnx", "plain", "plain/best_int8_openvino_model", "student"],
            ["teacher/best.pt", "teacher/best_int8.onnx", "plain/best.pt", "plain/best_int8_openvino_model", "s.pt"],
        ),
        (
            ["teacher", "teacher/best_ncnn_model", "plain", "plain/best_w8a16.tflite", "student"],
            ["teacher/best.pt", "teacher/best_ncnn_model", "plain/best.pt", "plain/best_w8a16.tflite", "s.pt"],
        ),
        (
            [
                "best_teacher_model",
                "best_teacher_model/best_qnn.onnx",
                "best_plain_model",
                "best_plain_model/best.onnx",
                "best_student_model",
            ],
            [
                *("r/best_teacher_model/best.pt", "r/best_teacher_model/best_qnn.onnx"),
                *("r/best_plain_model/best.pt", "r/best_plain_model/best.onnx", "r/best_student_model/best.pt"),
            ],
        ),
    ],
)
def test_other_files_of_the_teacher_and_the_baseline_are_no_students(names, paths):
    teacher, export, plain, other, student = names
    assert who(names, paths) == (teacher, plain, (student,))
    found = roles(names, paths)
    assert [group.name for group in found.others] == [export, other] and found.of(export) == found.of(other) == ""


def test_a_checkpoint_against_its_own_export_is_compared_where_asked_for():
    assert who(["best.pt", "best.onnx"], baseline="best.pt") == (None, "best.pt", ("best.onnx",))
    found = roles(["a", "a.onnx", "b"], ["a/best.pt", "a/best.onnx", "b/best.pt"], teacher="a", baseline="b")
    assert [group.name for group in found.others] == [] and found.students[0].name == "a.onnx"


def test_an_export_of_a_student_is_one_and_so_is_another_run():
    assert who(["teacher", "plain", "student", "student.onnx"])[2] == ("student", "student.onnx")
    names = ["a/run", "b/run", "c/run"]
    paths = [f"{name}/weights/best.pt" for name in names]
    assert who(names, paths, teacher="a/run", baseline="b/run") == ("a/run", "b/run", ("c/run",))


def test_settings_win_and_may_be_names_files_or_groups():
    names, paths = ["teacher", "a_s0", "a_s1", "b"], ["t.pt", "x/a_s0.pt", "x/a_s1.pt", "b.pt"]
    for baseline in ("a", "a_s1", "x/a_s0.pt"):
        assert who(names, paths, teacher="b.pt", baseline=baseline) == ("b", "a", ("teacher",))
    assert who(["plain", "x"], teacher="plain") == ("plain", None, ("x",))
    assert who(["teacher", "x"], baseline="teacher") == (None, "teacher", ("x",))


def test_errors_and_notes_name_the_thing():
    with pytest.raises(UserError, match="baseline 'c' is none of the compared models \\(a, b\\)"):
        roles(["a", "b"], baseline="c")
    with pytest.raises(UserError, match="'a' cannot be both"):
        roles(["a", "b"], teacher="a", baseline="a")
    found = roles(["teacher-l", "teacher-m", "x"])
    assert found.teacher is None and "'teacher-l', 'teacher-m'" in found.notes[0] and "teacher=" in found.notes[0]


def test_a_teacher_without_a_baseline_is_told_what_is_missing():
    (note,) = roles(["teacher", "student"]).notes
    assert (
        note.startswith("There is no baseline among the models: add the student trained plain") and "baseline=" in note
    )
    for names in (["teacher", "plain", "student"], ["teacher", "teacher.onnx"], ["a", "b"], ["teacher"]):
        assert roles(names).notes == ()
    (note,) = roles(["teacher", "a/plain", "b/plain", "student"]).notes  # which says it already
    assert note.startswith("Several models are called baseline")


def test_the_role_of_a_model():
    found = roles(["teacher", "plain_s0", "plain_s1", "x"])
    assert [found.of(name) for name in ("teacher", "plain_s1", "x", "stranger")] == [
        "teacher",
        "baseline",
        "student",
        "",
    ]
    assert roles(["x", "y"]).of("x") == ""


def row(ap, **more):
    classes = more.pop("classes", ())
    return {
        "ap": ap,
        "classes": [{"index": i, "name": name, "ap": value} for i, (name, value) in enumerate(classes)],
        **more,
    }


def test_the_share_of_the_lead_in_all_by_size_and_by_class():
    result = recovered(
        row(50, ap_small=20, ap_large=None, ap_medium=30, classes=[("ship", 60), ("plane", 40), ("car", None)]),
        row(40, ap_small=10, ap_large=None, ap_medium=30.5, classes=[("ship", 40), ("plane", 40.5), ("car", None)]),
        row(44, ap_small=9, ap_large=None, ap_medium=31, classes=[("ship", 65), ("plane", 41), ("car", None)]),
    )
    assert result.figures["ap"].share == pytest.approx(0.4) and result.figures["ap"].gain == 4
    assert result.figures["ap_small"].share == pytest.approx(-0.1)
    assert (result.figures["ap_medium"].share, result.figures["ap_medium"].why) == (
        None,
        "the teacher is 0.5 points behind",
    )
    assert (result.figures["ap_large"].why, result.figures["ap_large"].gain) == ("no objects", None)
    assert [c.label for c in result.classes] == ["ship", "plane", "car"]
    assert [c.share for c in result.classes] == [pytest.approx(1.25), None, None]
    assert json.loads(json.dumps(result.as_dict(), allow_nan=False))["figures"]["ap"]["label"] == "AP"


def test_seeds_are_averaged_first():
    result = recovered(row(50), [row(40), row(44)], [row(45), row(47), row(46)])
    assert result.figures["ap"].share == pytest.approx(0.5) and result.figures["ap"].baseline == 42


def test_ratings_do_as_well_as_their_dicts():
    box, first = np.array([[0, 0, 9, 9]] * 2), np.zeros(2, int)
    truth = Truth(("a", "b"), np.full((2, 2), 9), np.arange(2), first, box, {0: "x", 1: "y"})
    half = rate(truth, Detections([0], [0], [0.9], [[0, 0, 9, 9]]))
    full = rate(truth, Detections([0, 1], [0, 0], [0.9, 0.9], [[0, 0, 9, 9]] * 2))
    none = rate(truth, Detections([], [], [], []))
    result = recovered(full, none, half)
    assert result == recovered(full.as_dict(), [none.as_dict()], half.as_dict())
    assert result.figures["ap"].share == pytest.approx(51 / 101) == pytest.approx(result.figures["ap_small"].share)
    assert result.classes[1].why == "no objects"


def test_a_small_lead_says_nothing():
    assert share("AP", 40.4, 40, 41).why == "the teacher leads by 0.4 points only"
    assert share("AP", 40, 40, 41).why == "the teacher is not ahead"
    assert share("AP", 41, 40, 40.5).share == 0.5  # a lead of one point is enough
    assert share("AP", 40.4, 40, 40.2, threshold=0.1).share == pytest.approx(0.5)


@given(*[st.floats(0, 100)] * 3)
def test_a_share_is_given_or_explained(teacher, plain, student):
    result = share("AP", teacher, plain, student)
    assert (result.share is None) == bool(result.why)
    if result.share is not None:
        assert math.isclose(plain + result.share * (teacher - plain), student, abs_tol=1e-6)


def test_an_export_of_one_of_several_seeds_is_no_student():
    names = ["big_s0", "big_s1", "big_s0.onnx", "plain", "student"]
    paths = ["r/b0/best.pt", "r/b1/best.pt", "r/b0/best.onnx", "r/p/best.pt", "r/s/best.pt"]
    found = roles(names, paths, teacher="big")
    assert [group.name for group in found.students] == ["student"]
    assert [group.name for group in found.others] == ["big_s0.onnx"]


def test_a_class_in_which_the_teacher_hardly_leads_has_no_share():
    def side(ap):
        return {"ap": ap, "classes": [{"index": 0, "name": "ship", "ap": ap}]}

    for threshold, known in ((5, False), (2, True)):
        found = recovered(side(43), side(40), side(41.5), threshold=threshold)
        assert (found.figures["ap"].share is not None) == (found.classes[0].share is not None) == known
