from types import SimpleNamespace

import numpy as np
import pytest

from ds2d2_yolo.datasets.exported import Fixed
from ds2d2_yolo.report import notes


@pytest.fixture
def files(monkeypatch):
    """A checkpoint and two exported files, and what is known of them."""
    fixed = {
        "best.pt": Fixed(),
        "all.onnx": Fixed(nms=True, conf=0.001, most=300),
        "best.onnx": Fixed(nms=True, conf=0.25),
    }
    monkeypatch.setattr(notes, "fixed_by_export", fixed.__getitem__)
    return {f"{kind} {i}": path for i, (path, kind) in enumerate(zip(fixed, ("plain", "file", "file"), strict=True))}


def seen(files, *sizes, found=(), max_det=300, heads=(None,) * 3, rects=(None,) * 3, doubts=(None,) * 3):
    """What each found in one image, and the score and IoU that are part of its head."""
    about = {
        "found": SimpleNamespace(image=np.array(found, int)),
        "truth": SimpleNamespace(images=("a.png",)),
        "damaged": (),
        "max_det": max_det,
    }
    return {
        name: SimpleNamespace(
            imgsz=size, floor=head and head[0], overlap=head and head[1], rect=rect, doubt=doubt, **about
        )
        for name, size, head, rect, doubt in zip(files, sizes, heads, rects, doubts, strict=True)
    }


def test_a_file_whose_nms_drops_low_scores_is_named(files, caplog):
    (line,) = notes.notes_on(files, seen(files, *[(64, 64)] * 3), None)
    assert line.startswith("file 2: the model was exported with nms=True, which drops scores up to 0.25: conf=0.001")
    assert line in caplog.text


def test_nothing_is_lost_where_no_such_score_is_asked_for(files):
    assert notes.notes_on(files, seen(files, *[(64, 64)] * 3), 0.3) == []


def test_other_sizes_are_named(files):
    (line,) = notes.notes_on(files, seen(files, (64, 64), (64, 96), (64, 64)), 0.25)
    assert line.endswith("plain 0 at 64 x 64 px, file 1 at 96 x 64 px, file 2 at 64 x 64 px.")


def test_a_size_that_was_not_asked_for_is_named(files):
    (line,) = notes.notes_on(files, seen(files, *[(64, 96)] * 3), 0.25, 128)
    assert line.startswith("Rated at 96 x 64 px, not at imgsz=128: ")
    assert notes.notes_on(files, seen(files, *[(64, 96)] * 3), 0.25, [64, 96]) == []
    for asked in (64, [64], "64", "48,64", (48, 64), 64.0, None):
        assert notes.notes_on(files, seen(files, *[(64, 64)] * 3), 0.25, asked) == []


def test_a_file_that_gives_fewer_detections_than_the_others_is_named(files):
    (line,) = notes.notes_on(files, seen(files, *[(64, 64)] * 3, found=[0] * 300, max_det=400), 0.25)
    assert line.startswith(
        "file 1: 300 detections in 1 of 1 images, the most that the exported model gives, whatever max_det="
    )
    assert notes.notes_on(files, seen(files, *[(64, 64)] * 3, found=[0] * 299, max_det=400), 0.25) == []


@pytest.mark.parametrize(
    "heads, conf, iou, named",
    [
        ([(0.05, 0.5), None, None], None, None, ["plain 0"]),  # others are rated with lower scores
        ([(0.05, 0.5)] * 3, None, None, []),
        ([(0.05, 0.5)] * 3, 0.25, None, []),
        ([(0.05, 0.5)] * 3, 0.01, None, ["plain 0", "file 1", "file 2"]),
        ([(0.05, 0.5), None, None], 0.25, None, []),
        ([(0.05, 0.5), None, None], 0.25, 0.3, ["plain 0"]),
        ([(0.05, 0.5), None, None], 0.25, 0.5, []),
        ([None] * 3, 0.0001, 0.3, []),
    ],
)
def test_heads_with_rules_of_their_own_are_named(files, heads, conf, iou, named, monkeypatch):
    monkeypatch.setattr(notes, "fixed_by_export", lambda _: Fixed())
    lines = notes.notes_on(files, seen(files, *[(64, 64)] * 3, heads=heads), conf, None, iou)
    assert [line.partition(":")[0] for line in lines] == [", ".join(named)] * bool(named)
    assert all("drops scores up to 0.05 and does NMS itself, at IoU 0.5" in line for line in lines)


def test_an_export_of_such_a_head_is_no_other_rule(files):
    heads = [(0.05, 0.5), None, (0.05, 0.5)]  # "all.onnx" tells nothing of it
    assert notes.notes_on(files, seen(files, *[(64, 64)] * 3, heads=heads), None)[1:] == []


def test_a_model_whose_classes_have_other_names_is_named(files):
    (line,) = notes.notes_on(files, seen(files, *[(64, 64)] * 3, doubts=(None, "names differ", None)), 0.25)
    assert line == "file 1: names differ."


def test_square_images_beside_others_are_named(files):
    for rects in ((True, False, False), (False, True, None)):
        (line,) = notes.notes_on(files, seen(files, *[(64, 64)] * 3, rects=rects), 0.25)
        named = ", ".join(name for name, rect in zip(files, rects, strict=True) if rect is False)
        assert line.startswith(f"{named}: rated on square images, the others on images padded less")
    for rects in ([True] * 3, [False] * 3, (None, True, True)):
        assert notes.notes_on(files, seen(files, *[(64, 64)] * 3, rects=rects), 0.25) == []


def test_images_that_were_left_out_are_named(files, caplog):
    every = seen(files, *[(640, 640)] * 3)
    assert notes.left_out(every) == []
    next(iter(every.values())).damaged = ("/x/a b.png", "/x/c.png")
    assert notes.left_out(every) == ["2 of 3 images damaged, or with damaged labels, and left out: a b.png, c.png."]
    next(iter(every.values())).damaged = tuple(f"{i}.png" for i in range(7))
    assert notes.left_out(every)[0].endswith("left out: 0.png, 1.png, 2.png, 3.png, 4.png, ....")
