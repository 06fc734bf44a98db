"""The images where two models differ most: matching, order, crops and pictures."""

import base64

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds2d2_yolo.report.detections import Detections, Truth
from ds2d2_yolo.report.examples import Illustration, differences, errors, illustrate, mark

BOX = (10, 10, 30, 30)


def truth_of(*rows, images=3, size=(100, 120), files=None):
    """Objects (image, class, box)."""
    image, cls, box = zip(*rows, strict=True) if rows else ((), (), ())
    files = files or tuple(f"/data/{i}.png" for i in range(images))
    box = np.array(box, float).reshape(-1, 4)
    return Truth(files, np.array([size] * images), np.array(image, int), np.array(cls, int), box, {0: "ship", 1: "car"})


def found_of(*rows):
    """Detections (image, class, score, box)."""
    return Detections(*(zip(*rows, strict=True) if rows else ((), (), (), ())))


def test_a_detection_is_right_if_class_place_and_overlap_are():
    truth = truth_of((0, 0, BOX), (1, 1, BOX))
    found = found_of(
        (0, 0, 0.9, BOX), (1, 0, 0.9, BOX), (0, 0, 0.8, (20, 10, 40, 30)), (2, 1, 0.7, BOX), (1, 1, 0.1, BOX)
    )
    marks = mark(truth, found, 0.3)
    assert marks.right.tolist() == [True, False, False, False, False]
    assert marks.kept.tolist() == [True, True, True, True, False]
    assert marks.met.tolist() == [True, False]
    assert errors(truth, found, marks).tolist() == [1, 2, 1]


def test_classes_that_the_data_do_not_know_are_no_errors():
    truth = truth_of((0, 0, BOX))
    found = found_of((0, 0, 0.9, BOX), (0, 7, 0.9, BOX), (1, -1, 0.9, BOX))
    marks = mark(truth, found, 0.3)
    assert marks.kept.tolist() == [True, False, False] and not errors(truth, found, marks).any()


def test_an_object_is_taken_once_by_the_surest():
    truth, found = truth_of((0, 0, BOX)), found_of((0, 0, 0.5, BOX), (0, 0, 0.9, (11, 10, 30, 30)))
    assert mark(truth, found, 0.1).right.tolist() == [False, True]


def test_the_second_best_object_serves_where_the_best_is_taken():
    near = (12, 10, 32, 30)
    truth = truth_of((0, 0, BOX), (0, 0, near))
    found = found_of((0, 0, 0.9, BOX), (0, 0, 0.8, (10, 11, 30, 31)))
    marks = mark(truth, found, 0.1)
    assert marks.right.all() and marks.met.all()


def test_half_an_overlap_is_enough():
    truth = truth_of((0, 0, (0, 0, 10, 10)))
    assert mark(truth, found_of((0, 0, 0.5, (0, 0, 10, 5))), 0).right.all()
    assert not mark(truth, found_of((0, 0, 0.5, (0, 0, 10, 4.9))), 0).right.any()


def test_a_score_at_the_confidence_is_kept():
    score = np.float32(0.3)
    assert mark(truth_of((0, 0, BOX)), found_of((0, 0, score, BOX)), float(score)).kept.all()


@pytest.mark.parametrize("conf", [None, float("nan")])
def test_without_a_best_confidence_a_usual_one_serves(conf):
    found = found_of((0, 0, 0.24, BOX), (0, 0, 0.26, BOX))
    assert mark(truth_of(), found, conf).kept.tolist() == [False, True]


rows = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 1), st.floats(0.01, 1), st.integers(0, 60), st.integers(0, 60)),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(rows, rows, st.floats(0, 1))
def test_each_object_is_met_by_one_right_detection(objects, detections, conf):
    truth = truth_of(*((i, c, (x, y, x + 20, y + 20)) for i, c, _, x, y in objects))
    found = found_of(*((i, c, s, (x, y, x + 20, y + 20)) for i, c, s, x, y in detections))
    marks = mark(truth, found, conf)
    assert marks.right.sum() == marks.met.sum() and (marks.kept | ~marks.right).all()
    assert errors(truth, found, marks).sum() == (~marks.met).sum() + (marks.kept & ~marks.right).sum()


def test_images_come_by_how_far_the_two_differ_whoever_is_better():
    far = [(2, 0, 0.9, (x, 60, x + 9, 69)) for x in (0, 20, 40)]
    truth = truth_of((0, 0, BOX), (1, 0, BOX), (3, 0, BOX), images=5)
    base = found_of((1, 0, 0.9, BOX), (3, 0, 0.9, BOX))
    student = found_of((0, 0, 0.9, BOX), (1, 0, 0.9, BOX), (3, 0, 0.9, BOX), *far)
    found, conf = {"baseline": base, "student": student}, {"baseline": 0.5, "student": 0.5}
    assert differences(truth, found, conf, 9) == [(2, -3), (0, 1)]
    assert differences(truth, found, conf, 1) == [(2, -3)]
    assert differences(truth, found, {"baseline": 0.5, "student": 0.95}, 9) == [(1, -1), (3, -1)]


def test_as_many_errors_on_other_objects_are_a_difference_too():
    other = (50, 50, 70, 70)
    truth = truth_of((1, 0, BOX), (1, 0, other))
    found = {"baseline": found_of((1, 0, 0.9, BOX)), "student": found_of((1, 0, 0.9, other))}
    assert differences(truth, found, {}, 9) == [(1, 0)]


@pytest.fixture
def scene(tmp_path):
    """Three images of which the first two differ, the second more; 100 x 120."""
    files = []
    for i in range(3):
        files.append(str(tmp_path / f"folder {i}" / "image.png"))
        (tmp_path / f"folder {i}").mkdir()
        cv2.imwrite(files[-1], np.full((100, 120, 3), 60 * i, np.uint8))
    truth = truth_of((0, 0, BOX), (1, 0, BOX), (1, 1, (60, 60, 80, 80)), (2, 0, BOX), files=tuple(files))
    everything = [(int(i), int(c), 0.9, tuple(b)) for i, c, b in zip(truth.image, truth.cls, truth.box, strict=True)]
    wrong = (1, 0, 0.8, (90, 10, 110, 30))
    found = {
        "teacher": found_of(*everything),
        "baseline": found_of(everything[3], wrong),
        "student": found_of(everything[0], everything[1], everything[3]),
    }
    return truth, found


def test_an_example_shows_what_each_model_does(scene):
    shown = illustrate(*scene, {}, names={"student": "mine"})
    assert (shown.fewer, shown.more, shown.equal) == (2, 0, 1)
    second, first = shown.examples
    assert second.file.replace("\\", "/") == "folder 1/image.png" and (second.fewer, first.fewer) == (2, 1)
    assert [(p.role, p.name) for p in second.panels] == [
        ("teacher", "teacher"), ("baseline", "baseline"), ("student", "mine")
    ]  # fmt: skip
    teacher, base, student = second.panels
    assert teacher.counts == {"right": 2, "wrong": 0, "missed": 0}
    assert base.counts == {"right": 0, "wrong": 1, "missed": 2}
    assert student.counts == {"right": 1, "wrong": 0, "missed": 1}
    assert base.boxes["wrong"][0].xyxy == (90, 10, 110, 30) and base.boxes["wrong"][0].text == "ship 0.80"
    assert student.boxes["missed"][0].xyxy == (60, 60, 80, 80) and student.boxes["missed"][0].text == "car"
    assert not second.cropped and second.region == (0, 0, 120, 100)
    assert pixels_of(second).shape == (100, 120, 3) and abs(int(pixels_of(second).mean()) - 60) < 3


def pixels_of(example):
    head, data = example.picture.split(",")
    assert head == "data:image/jpeg;base64"
    return cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)


def test_a_big_image_is_cropped_to_where_the_two_differ(tmp_path):
    file = tmp_path / "big.png"
    pixels = np.zeros((1500, 2000, 3), np.uint8)
    pixels[900:910, 1700:1710] = 255
    cv2.imwrite(str(file), pixels)
    boxes = [(1700, 900, 1710, 910), (1720, 920, 1730, 930), (5, 5, 15, 15)]
    truth = truth_of(*((0, 0, b) for b in boxes), images=1, size=(1500, 2000), files=(str(file),))
    found = {"baseline": found_of(), "student": found_of(*((0, 0, 0.9, b) for b in boxes))}
    (example,) = illustrate(truth, found, {}).examples
    x1, y1, x2, y2 = example.region
    assert example.cropped and (x2 - x1, y2 - y1) == (240, 240) and example.shape == (1500, 2000)
    student = example.panels[1]
    assert student.counts["right"] == 3 and len(student.boxes["right"]) == 2  # one is out of sight
    left, top = (int(v) for v in student.boxes["right"][0].xyxy[:2])
    assert pixels_of(example)[top + 5, left + 5].min() > 200  # boxes and picture are of the same place


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.lists(st.tuples(*[st.floats(0, 1)] * 4), max_size=6))
def test_a_region_lies_within_the_image(height, width, corners):
    from ds2d2_yolo.report.examples import _region

    corners = np.array(corners).reshape(-1, 2, 2) * (width, height)
    x1, y1, x2, y2 = _region(np.concatenate((corners.min(1), corners.max(1)), 1), height, width)
    assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height


def test_a_picture_is_bounded(tmp_path):
    file = tmp_path / "noise.png"
    cv2.imwrite(str(file), np.random.default_rng(0).integers(0, 256, (700, 1400, 3), np.uint8))
    truth = truth_of((0, 0, (0, 0, 600, 600)), images=1, size=(700, 1400), files=(str(file),))
    found = {"baseline": found_of(), "student": found_of((0, 0, 0.9, (0, 0, 600, 600)))}
    (example,) = illustrate(truth, found, {}).examples
    assert pixels_of(example).shape[:2] == (320, 640) and len(example.picture) < 210_000


def test_an_image_that_is_gone_or_changed_is_passed_over(scene, tmp_path):
    (tmp_path / "folder 1/image.png").unlink()
    assert [e.fewer for e in illustrate(*scene, {}, n=1).examples] == [1]
    cv2.imwrite(str(tmp_path / "folder 0/image.png"), np.zeros((5, 5, 3), np.uint8))
    shown = illustrate(*scene, {})
    assert shown.examples == () and shown.fewer == 2


def test_a_folder_that_is_gone_is_not_gone_through_as_a_whole(monkeypatch):
    asked = []
    monkeypatch.setattr("ds2d2_yolo.report.examples.imread", asked.append)
    truth = truth_of(*((i, 0, BOX) for i in range(50)), images=50)
    found = {"baseline": found_of(), "student": found_of(*((i, 0, 0.9, BOX) for i in range(50)))}
    assert illustrate(truth, found, {}, n=2).examples == () and len(asked) == 10


@pytest.mark.parametrize("shape", [(100, 120), (100, 120, 4)])
def test_gray_and_transparent_images_are_shown(scene, tmp_path, shape):
    cv2.imwrite(str(tmp_path / "folder 1/image.png"), np.full(shape, 90, np.uint8))
    assert pixels_of(illustrate(*scene, {}).examples[0]).shape == (100, 120, 3)


def test_without_student_or_baseline_nothing_is_shown(scene):
    truth, found = scene
    assert illustrate(truth, {"teacher": found["teacher"], "student": found["student"]}, {}) == Illustration()


def test_a_split_without_objects_and_detections_has_no_examples():
    empty = {"baseline": found_of(), "student": found_of()}
    shown = illustrate(truth_of(), empty, {})
    assert shown.examples == () and (shown.fewer, shown.more, shown.equal) == (0, 0, 3)
    assert differences(truth_of(images=0), empty, {}, 3) == []
