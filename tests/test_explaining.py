"""What the picture of a pair shows is what training compares."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from ds2d2_yolo.distill.amplifiers import Step
from ds2d2_yolo.distill.levels import detect_head
from ds2d2_yolo.distill.model import DS2D2Model
from ds2d2_yolo.distill.teacher import load_teacher
from ds2d2_yolo.engine.amplifier_file import FORMAT
from ds2d2_yolo.engine.pair import load_pair, maps_of
from ds2d2_yolo.errors import UserError
from ds2d2_yolo.explaining import _batch, _regions, explain, explained
from ds2d2_yolo.report.seen import see
from tests.helpers.checkpoints import save_checkpoint
from tests.helpers.distilling import settings, tiny, tiny_faster_rcnn, tiny_retinanet

HEADS = {"yolo": tiny, "retinanet": tiny_retinanet, "faster rcnn": tiny_faster_rcnn}


@pytest.fixture
def image(tmp_path):
    """An image of 96 x 64 pixels with two labelled objects, and one more image beside it."""
    for folder in ("images", "labels"):
        (tmp_path / "set" / folder).mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    for name in ("one", "two"):
        cv2.imwrite(str(tmp_path / f"set/images/{name}.png"), pixels)
        pixels = pixels[::-1]
    (tmp_path / "set/labels/one.txt").write_text("0 0.3 0.5 0.2 0.3\n1 0.7 0.4 0.1 0.1 0.8 0.1 0.8 0.6\n")
    return tmp_path / "set" / "images" / "one.png"


def amplifier_beside(teacher, name="best-amplifier-0.pt", wavelet="haar"):
    """A high-frequency amplifier of a teacher's file: its own head, a bit off."""
    model = load_teacher(teacher)
    head = {k: v * 1.01 if v.is_floating_point() else v for k, v in detect_head(model).state_dict().items()}
    known = {"format": FORMAT, "teacher": model.fingerprint, "wavelet": wavelet, "wavelet_padding": "zero"}
    torch.save({**known, "head": head, "ap50": 0.5, "ap": 0.3}, teacher.with_name(name))
    return teacher.with_name(name)


@pytest.fixture
def undrawn(monkeypatch):
    """Leaves out the drawing, which takes a second."""
    monkeypatch.setattr("ds2d2_yolo.explaining.draw", lambda explanation, path: path)


@pytest.fixture
def files(tmp_path):
    """Makes a student's and a teacher's file; the latter with its amplifier beside it."""

    def make(make_model=tiny, student=None, teacher=None, **train_args):
        save_checkpoint(tmp_path / "student.pt", make_model(seed=1, **(student or {})), **train_args)
        save_checkpoint(tmp_path / "best.pt", make_model(seed=2, **(teacher or {})))
        amplifier_beside(tmp_path / "best.pt")
        return tmp_path / "student.pt", tmp_path / "best.pt"

    return make


OTHERS = {"normalize": "teacher", "align": False, "wavelet": "db2"}
PUBLISHED = {"normalize": "none", "align": False, "published": True}


@pytest.mark.parametrize(
    ("head", "own"),
    [("yolo", {}), ("yolo", OTHERS), ("retinanet", {}), ("retinanet", PUBLISHED), ("faster rcnn", PUBLISHED)],
)
def test_the_maps_are_what_the_four_terms_are_made_of(head, own, files, image):
    student, teacher = files(HEADS[head])
    wavelet = own.get("wavelet", "haar")
    amplifier = amplifier_beside(teacher, "other.pt", wavelet)
    pair = load_pair(student, teacher, amplifier, own)
    seen = see(image, imgsz=128, stride=pair.stride)
    weights = {"ex_low": 1.0, "ex_high": 1.0, "im_full": 1.0, "im_high": 1.0, "balance": "fixed"}
    model = DS2D2Model(pair.student, load_teacher(teacher), pair.high.head, settings(**weights, **own))
    pair.adapters = model.projector
    found = explained(pair, seen, "a title", list(range(len(pair.levels))))

    ours, output = maps_of(pair.student, seen.tensor)
    theirs = maps_of(pair.teacher, seen.tensor)[0]
    step = Step(_batch(seen.tensor, seen.boxes), _regions(pair, output))
    terms = model.terms(
        [ours[level.student] for level in pair.levels], [theirs[level.teacher] for level in pair.levels], step
    )
    shown = {
        "ex_low": sum((v.weight * v.low_difference**2).mean() for v in found.levels),
        "ex_high": sum((v.weight * v.high_difference**2).mean() for v in found.levels),
        "im_full": sum(v.gap_full.sum() for v in found.levels),
        "im_high": sum(v.gap_high.sum() for v in found.levels),
    }
    assert {k: float(v) for k, v in shown.items()} == pytest.approx({k: v.item() for k, v in terms.items()}, rel=1e-3)
    assert min(shown.values()) > 0
    assert [v.stride for v in found.levels] == [level.stride for level in pair.levels]


@pytest.mark.parametrize(("classes", "asked"), [([1], [1]), (2, [2]), ([7], None), (None, None)])
def test_of_classes_that_count_as_one_the_teacher_is_asked_about_those_that_were_trained(files, image, classes, asked):
    student, teacher = files(student={"nc": 1}, single_cls=True, classes=classes)
    pair = load_pair(student, teacher)
    assert pair.full.classes == asked and pair.high.classes is None
    pair.fit_adapters([see(image, imgsz=64).tensor])
    explained(pair, see(image, imgsz=64), "", [0])


def test_adapters_of_an_unfinished_run_are_used(files, tmp_path, image, capsys, undrawn):
    _, teacher = files(student={"width": 8}, teacher={"width": 16})
    student, own = tiny(seed=1), settings(im_high=0)
    model = DS2D2Model(student, load_teacher(teacher), None, own)
    kept = [adapter.weight.detach().half().float() for adapter in model.projector]
    args = {**vars(own), "teacher": str(teacher), "wavelet": "db2"}
    save_checkpoint(tmp_path / "last.pt", model.as_ultralytics(model.balance.state()), "ema", **args)

    pair = load_pair(tmp_path / "last.pt")
    assert all(isinstance(a, nn.Conv2d) for a in pair.adapters)
    assert all(torch.equal(a.weight, k) for a, k in zip(pair.adapters, kept, strict=True))
    assert pair.paths[1] == str(teacher)
    assert pair.own.wavelet == "db2" and pair.high is None  # the amplifier there is haar's
    explain({"explain": image, "model": tmp_path / "last.pt", "save_dir": tmp_path, "imgsz": 64})
    said = capsys.readouterr().out
    assert "adapters that the run has trained so far" in said and "its prediction gap is left out" in said


def test_of_several_amplifiers_that_fit_the_newest_is_taken(files):
    student, teacher = files()
    (old,) = teacher.parent.glob("best-amplifier-*.pt")
    new, foreign = (
        amplifier_beside(teacher, "best-amplifier-1.pt"),
        amplifier_beside(teacher, "best-amplifier-2.pt", "db2"),
    )
    for age, file in enumerate((foreign, new, old)):
        os.utime(file, (1e9 - age, 1e9 - age))
    for first, second in ((new, old), (old, new)):
        (note,) = [note for note in load_pair(student, teacher).notes if "amplifier:" in note]
        assert note == f"High-frequency amplifier: {first}, the newest of 2 that fit."
        os.utime(second, (1e9 + 9, 1e9 + 9))


def test_missing_adapters_are_fitted_to_other_images_of_the_folder(files, image, tmp_path, capsys, undrawn):
    student, teacher = files(teacher={"width": 16})
    picture = explain({"explain": image, "model": student, "teacher": teacher, "imgsz": 64, "save_dir": tmp_path / "o"})
    assert picture == tmp_path / "o" / "one.png"
    assert "fitted by least squares to 1 other images" in capsys.readouterr().out
    (image.parent / "two.png").unlink()
    explain({"explain": image, "model": student, "teacher": teacher, "imgsz": 64, "save_dir": tmp_path / "o"})
    assert "this image itself" in capsys.readouterr().out


@pytest.mark.parametrize(("align", "normalize"), [(True, "none"), (False, "none"), (False, "channel")])
def test_what_a_linear_map_explains_is_no_difference(align, normalize, files, image):
    student, _ = files()
    pair = load_pair(student, student, None, {"adapter": "always", "align": align, "normalize": normalize})
    assert pair.adapters is None
    seen = see(image, imgsz=64)
    pair.fit_adapters([seen.tensor])
    for view in explained(pair, seen, "", [0, 1]).levels:
        assert np.abs(view.difference).max() < 0.1 * np.abs(view.teacher.features).max()


def test_where_the_picture_goes(files, image, tmp_path, monkeypatch, undrawn):
    files()
    monkeypatch.chdir(tmp_path)
    asked = {"explain": str(image), "model": "student.pt", "teacher": "best.pt", "imgsz": 64}
    for place, folder in (
        ({}, "runs/explain"),
        ({"project": "here"}, "here/explain"),
        ({"project": "here", "name": "it"}, "here/it"),
        ({"save_dir": "there", "name": "it"}, "there"),
    ):
        assert explain({**asked, **place}) == Path(folder) / f"{image.stem}.png"
    monkeypatch.chdir(image.parent)
    own = {"explain": image.name, "model": tmp_path / "student.pt", "teacher": tmp_path / "best.pt", "save_dir": "."}
    assert explain({**asked, **own}) == Path(f"{image.stem}-explained.png")  # the image itself is not replaced


def test_the_picture_and_the_words(files, image, tmp_path, capsys):
    student, teacher = files()
    asked = {"explain": str(image), "model": student, "teacher": teacher, "save_dir": tmp_path}
    picture = explain({**asked, "level": 16, "imgsz": 192})
    assert cv2.imread(str(picture)).shape[1] > 1000
    said = capsys.readouterr().out
    assert "Objects: 2 from" in said and "best-amplifier-0.pt" in said and "the same channels" in said
    assert [line.split()[0] for line in said.splitlines() if line.endswith("x")] == ["16"]


def test_without_labels_the_teachers_detections_stand_in(files, image):
    student, teacher = files()
    pair = load_pair(student, teacher)
    label = image.parents[1] / "labels" / "one.txt"
    for reason in ("cannot be read as labels", "is not there"):
        label.write_text("no labels at all") if reason != "is not there" else label.unlink()
        found = explained(pair, see(image, imgsz=64), "", [0])
        assert any(f"{len(found.boxes)} detections above 0.25" in n and reason in n for n in found.notes)
        assert len(found.boxes) > 0 and found.levels[0].weight.max() > 1


def test_a_faster_rcnn_teacher_cannot_be_asked_about_a_yolo_student(tmp_path, image):
    student = save_checkpoint(tmp_path / "student.pt", tiny(strides=(8, 16), seed=1))
    teacher = save_checkpoint(tmp_path / "best.pt", tiny_faster_rcnn(seed=2))
    pair = load_pair(student, teacher, None, {"adapter": "always"})
    pair.fit_adapters([see(image, imgsz=64, stride=64).tensor])
    found = explained(pair, see(image, imgsz=64, stride=64), "", [0])
    assert found.levels[0].gap_full is None and any("No prediction gaps" in n for n in found.notes)


def test_gray_images(files, image, tmp_path):
    student, teacher = files(student={"channels": 1}, teacher={"channels": 1})
    pair = load_pair(student, teacher)
    seen = see(image, 1, 64, pair.stride)
    found = explained(pair, seen, "", [0])
    assert seen.tensor.shape == (1, 1, 48, 64)
    assert np.ptp(found.image, axis=2).max() == 0 and found.levels[0].gap_full.max() > 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"explain": "none.png"}, "there is no image 'none.png'"),
        ({"explain": "student.pt"}, "the image 'student.pt' cannot be read"),
        ({"explain": "."}, "is a folder"),
        ({"model": None}, "no model given"),
        ({"model": "none.pt"}, "model 'none.pt' does not exist"),
        ({"model": "set/labels/one.txt"}, "no .pt checkpoint"),
        ({"model": "broken.pt"}, "'broken.pt' cannot be loaded"),
        ({"teacher": None}, "say teacher=best.pt"),
        ({"teacher": "none.pt"}, "teacher 'none.pt' does not exist"),
        ({"amplifier": "student.pt"}, "'student.pt' is no DS2D2 amplifier"),
        ({"amplifier": "none.pt"}, "amplifier 'none.pt' does not exist"),
        ({"level": 4}, "level=4 is no stride that both models have; those are 8, 16"),
        ({"imgsz": "big"}, "imgsz=big must be a whole number"),
        ({"wavelets": "haar"}, "did you mean wavelet"),
        ({"wavelet": "hair"}, "unknown wavelet 'hair'"),
    ],
)
def test_mistakes(change, said, files, image, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files()
    (tmp_path / "broken.pt").write_bytes(b"not a checkpoint")
    good = {"explain": "set/images/one.png", "model": "student.pt", "teacher": "best.pt", "imgsz": 64}
    with pytest.raises(UserError) as refused:
        explain({**good, **change})
    assert said in str(refused.value)


def test_a_class_one_beyond_the_teachers_is_not_asked_about(files):
    student, teacher = files(student={"nc": 1}, single_cls=True, classes=[3])  # the teacher knows 0 to 2
    assert load_pair(student, teacher).full.classes is None


def test_adapters_of_the_paper_are_fitted_between_equal_channels_too(files):
    assert load_pair(*files()).adapters is not None
    assert load_pair(*files(published=True)).adapters is None


def test_a_pair_is_looked_at_at_the_longer_side_and_the_coarser_stride(files):
    pair = load_pair(*files(imgsz=[64, 96], student={"strides": (8, 16)}, teacher={"strides": (8, 16, 32)}))
    assert (pair.imgsz, pair.stride) == (96, 32)


def test_an_amplifier_that_has_learned_is_its_teachers_and_of_its_high_frequencies(files, tmp_path):
    _, teacher = files()
    own = settings(im_high=0.3, amplifier="alongside")
    model = DS2D2Model(tiny(seed=1), load_teacher(teacher), None, own)
    args = {**vars(own), "teacher": str(teacher)}
    last = save_checkpoint(tmp_path / "last.pt", model.as_ultralytics(model.balance.state()), "ema", **args)
    (tmp_path / "apart").mkdir()
    other = save_checkpoint(tmp_path / "apart" / "other.pt", tiny(seed=7))

    def learned(*given, **changes):
        return any("as far as it has learned" in note for note in load_pair(last, *given, **changes).notes)

    assert learned() and learned(teacher)
    assert not learned(other)
    assert not learned(changes={"wavelet": "db2"})
