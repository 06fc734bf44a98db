from types import SimpleNamespace

import pytest

from ds2d2_yolo.datasets.exported import Fixed
from ds2d2_yolo.report import notes


@pytest.fixture
def files(monkeypatch):
    """A checkpoint and two exported files, and what is known of them."""
    fixed = {"best.pt": Fixed(), "all.onnx": Fixed(nms=True, conf=0.001), "best.onnx": Fixed(nms=True, conf=0.25)}
    monkeypatch.setattr(notes, "fixed_by_export", fixed.__getitem__)
    return {f"{kind} {i}": path for i, (path, kind) in enumerate(zip(fixed, ("plain", "file", "file"), strict=True))}


def seen(files, *sizes):
    return {name: SimpleNamespace(imgsz=size) for name, size in zip(files, sizes, strict=True)}


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
