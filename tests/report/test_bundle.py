"""The folder in which a report grows."""

import errno
from pathlib import Path

import numpy as np
import pytest

from ds2d2_yolo.errors import UserError
from ds2d2_yolo.report.bundle import Bundle, report_folder
from ds2d2_yolo.report.detections import Detections, Truth
from ds2d2_yolo.report.files import replace, replace_text

TRUTH = Truth(
    images=("a.jpg", "odd \udcff name.jpg"),
    shapes=np.array([[40, 60], [50, 50]]),
    image=np.array([0, 1]),
    cls=np.array([0, 3]),
    box=np.array([[1.0, 2, 3, 4], [5, 6, 7.5, 8.25]]),
    names={0: "plane", 3: "ship"},
)
FOUND = Detections([1, 0], [3, 0], [0.9, 0.1], [[5, 6, 7, 8], [1, 2, 3, 4.5]])


@pytest.fixture
def files(tmp_path):
    for name in ("my.yaml", "a.pt", "b.pt"):
        (tmp_path / name).write_text(name)
    return tmp_path


def bundle(files, **settings):
    return Bundle(files / "report", {"data": str(files / "my.yaml"), "imgsz": 64, **settings})


def test_what_is_kept_comes_back_in_a_later_run(files):
    bundle(files).keep(files / "a.pt", TRUTH, FOUND, {"parameters": 7})
    truth, found, about = bundle(files).detections(files / "a.pt")
    assert truth.images == TRUTH.images and truth.names == TRUTH.names and about == {"parameters": 7}
    for field in ("shapes", "image", "cls", "box"):
        assert np.array_equal(getattr(truth, field), getattr(TRUTH, field))
    for field in ("image", "cls", "score", "box"):
        assert np.array_equal(getattr(found, field), getattr(FOUND, field))
    assert bundle(files).detections(files / "b.pt") is None


def test_the_objects_are_stored_once(files):
    both = bundle(files)
    for name in ("a.pt", "b.pt"):
        both.keep(files / name, TRUTH, FOUND, {})
    assert len(list((files / "report/measured").glob("truth-*.npz"))) == 1


@pytest.mark.parametrize("change", ["model", "data", "settings"])
def test_what_has_changed_is_measured_again(files, change):
    bundle(files).keep(files / "a.pt", TRUTH, FOUND, {})
    if change != "settings":
        (files / {"model": "a.pt", "data": "my.yaml"}[change]).write_text("another text")
    later = bundle(files, **({"imgsz": 96} if change == "settings" else {}))
    assert later.detections(files / "a.pt") is None


def test_what_was_there_stays_until_all_is_written(tmp_path):
    replace_text(tmp_path / "a.csv", "first \ud800")
    assert (tmp_path / "a.csv").read_text() == "first \\ud800"

    def fails(file):
        file.write(b"sec")
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        replace(tmp_path / "a.csv", fails)
    assert (tmp_path / "a.csv").read_text() == "first \\ud800"
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_a_full_disk_is_told_with_the_folder(files, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    kept = bundle(files)
    monkeypatch.setattr("ds2d2_yolo.report.bundle._replace", full)
    for write in (lambda: kept.keep(files / "a.pt", TRUTH, FOUND, {}), lambda: kept.save("cost", [], {})):
        with pytest.raises(UserError, match=r"report' \(No space left on device\); make room there"):
            write()


def test_folders_that_it_made_for_nothing_go_again(files):
    new = bundle(files)
    assert new.is_empty()
    new.tidy()
    assert not (files / "report").exists()
    (files / "report").mkdir()
    bundle(files).tidy()
    assert list((files / "report").iterdir()) == []  # it was there before
    full = bundle(files)
    full.keep(files / "a.pt", TRUTH, FOUND, {})
    full.tidy()
    assert not full.is_empty() and bundle(files).detections(files / "a.pt")


@pytest.mark.parametrize("kind", ["npz", "json"])
def test_an_entry_cut_short_counts_as_none(files, kind):
    kept = bundle(files)
    kept.keep(files / "a.pt", TRUTH, FOUND, {})
    for entry in (files / "report/measured").glob(f"*.{kind}"):
        entry.write_bytes(entry.read_bytes()[: entry.stat().st_size // 2])
    assert kept.detections(files / "a.pt") is None


def test_plain_values_hold_for_their_key(files):
    kept = bundle(files)
    kept.save("cost", ["a", "b"], [{"ms": 1.5}])
    assert bundle(files).load("cost", ["a", "b"]) == [{"ms": 1.5}]
    assert kept.load("cost", ["a"]) is None and kept.load("other", ["a", "b"]) is None
    assert not list((files / "report/measured").glob(".*"))  # no drafts


def test_a_model_that_is_a_folder_counts_with_all_its_files(files):
    (files / "openvino").mkdir()
    (files / "openvino/model.xml").write_text("x")
    kept = bundle(files)
    before = kept.key(files / "openvino")
    (files / "openvino/model.bin").write_text("y")
    assert kept.key(files / "openvino") != before


def test_a_folder_that_cannot_be_made_is_named(files):
    (files / "report").write_text("a file is in the way")
    with pytest.raises(UserError, match=r"cannot write the report to .*report.*save_dir="):
        bundle(files)


def test_a_training_run_keeps_its_table(tmp_path):
    run = tmp_path / "plain"
    run.mkdir()
    (run / "results.csv").write_text("model,ap\n")
    assert report_folder(run, {}) == run  # an earlier report
    (run / "results.csv").write_text("epoch,time,train/box_loss\n1,2,3\n")
    for place, settings in ((run, {}), (None, {"project": tmp_path, "name": "plain", "exist_ok": True})):
        with pytest.raises(UserError, match=r"plain' is a training run's folder"):
            report_folder(place, settings)
    (run / "results.csv").unlink()  # before the first epoch is over
    (run / "args.yaml").touch()
    assert report_folder(run, {}) == run
    (run / "weights").mkdir()
    with pytest.raises(UserError, match=r"plain' is a training run's folder"):
        report_folder(run, {})


def test_the_folder_is_a_new_one_in_project_under_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/report", "runs/report-2", "p/report", "runs/n"):
        (tmp_path / folder).mkdir(parents=True)
    cases = [({}, "runs/report-3"), ({"project": "p"}, "p/report-2"), ({"name": "n"}, "runs/n-2")]
    cases += [({"project": "p", "name": "n"}, "p/n"), ({"name": "n", "exist_ok": True}, "runs/n")]
    for given, expected in cases:
        assert report_folder(None, {**given, "imgsz": 96}) == Path(expected)
    asked = {"project": "p", "imgsz": 96}
    assert report_folder("there", asked) == Path("there") and asked == {"imgsz": 96}
