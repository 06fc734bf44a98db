"""Zip files whose names say a split that no folder in them says."""

import json
import zipfile

import pytest

from ds2d2_yolo.datasets import coco_json, voc
from ds2d2_yolo.datasets.source import Source
from tests.datasets.downloads import coco
from tests.datasets.test_coco_images import BOX, places
from tests.datasets.test_voc import CAR, SHIP


@pytest.fixture
def packed(tmp_path):
    """Returns a function that lays out files, those below a/b.zip in that zip file, as a source."""

    def pack(files):
        for name, content in files.items():
            place, archive, member = name.partition(".zip/")
            path = tmp_path / f"{place}{archive.rstrip('/')}"
            path.parent.mkdir(parents=True, exist_ok=True)
            text = content if isinstance(content, str) else json.dumps(content)
            if archive:
                with zipfile.ZipFile(path, "a") as file:
                    file.writestr(member, text)
            else:
                path.write_text(text)
        return Source(tmp_path)

    return pack


def annotated(names, category=2):
    return coco(list(enumerate(names)), [(i, category, BOX) for i in range(len(names))])


def classes(result):
    """Split, image and classes of each job."""
    return [
        (job.split, job.image.where.name, job.stem, [result.names[k] for k in job.read().classes])
        for job in result.jobs
    ]


@pytest.mark.parametrize("inner", ["", "data/", "JPEGImages/"])
def test_coco(packed, inner):
    files = {f"{split}.zip/{inner}annotations.json": annotated([f"{split}.jpg", "x.jpg"]) for split in ("train", "val")}
    files |= {f"{split}.zip/{inner}{name}.jpg": "" for split in ("train", "val") for name in (split, "x")}
    result = coco_json.plan(packed(files))
    assert [job[:3] for job in classes(result)] == [
        *(("train", "train.zip", "train"), ("train", "train.zip", "x")),
        *(("val", "val.zip", "val"), ("val", "val.zip", "x")),
    ]
    assert result.problems == {}


def test_coco_with_images_of_one_name_and_lists_beside_their_zip_files(packed):
    files = {f"images/{split}.zip/{name}.jpg": "" for split in ("train", "val") for name in "01"}
    files["annotations/train.json"] = annotated(["0.jpg", "1.jpg"], 7)
    files["annotations/val.json"] = annotated(["0.jpg", "1.jpg"], 2)
    result = coco_json.plan(packed(files))
    assert classes(result) == [
        *(("train", "train.zip", name, ["ship"]) for name in "01"),
        *(("val", "val.zip", name, ["car"]) for name in "01"),
    ]
    assert result.problems == {}


@pytest.mark.parametrize("folder", ["", "images/"])
def test_coco_with_names_of_zip_files_for_folders(packed, folder):
    files = {f"{folder}{name}.zip/1.jpg": "" for name in ("train", "val")}
    result = coco_json.plan(packed(files | {"all.json": annotated([f"{folder}train/1.jpg", f"{folder}val/1.jpg"])}))
    assert [job[:2] for job in classes(result)] == [("train", "train.zip"), ("val", "val.zip")]
    assert result.problems == {}


def test_coco_with_names_of_other_zip_files_for_folders(packed):
    files = {"seqA.zip/1.jpg": "", "seqB.zip/1.jpg": "", "train.json": annotated(["seqB/1.jpg"])}
    result = coco_json.plan(packed(files | {"val.json": annotated(["seqA/1.jpg"])}))
    assert [job[:2] for job in classes(result)] == [("train", "seqB.zip"), ("val", "seqA.zip")]


def test_coco_files_in_zip_files_name_the_images_beside_them(packed):
    files = {f"{name}.zip/1.jpg": "" for name in ("seqA", "seqB")}
    files |= {"seqA.zip/val.json": annotated(["1.jpg"]), "seqB.zip/train.json": annotated(["1.jpg"])}
    result = coco_json.plan(packed(files))
    assert [job[:2] for job in classes(result)] == [("train", "seqB.zip"), ("val", "seqA.zip")] and not result.problems


def test_zip_files_of_no_split_stay_neutral(packed):
    files = {"val/part1.zip/1.jpg": "", "part1.zip/train/2.jpg": "", "val.zip/train/3.jpg": "", "part2.zip/4.jpg": ""}
    result = coco_json.plan(packed(files | {"all.json": annotated([f"{i}.jpg" for i in range(1, 5)])}))
    assert [(split, stem) for split, _, stem in places(result)] == [
        *(("val", "1"), ("train", "2"), ("train", "3"), ("train", "4"))
    ]


@pytest.mark.parametrize("images, notes", [("", ""), ("images/", "annotations/"), ("JPEGImages/a/", "Annotations/a/")])
@pytest.mark.parametrize("stem", ["1", "{}"])
def test_voc(packed, images, notes, stem):
    """The names may be the same in both zip files."""
    files = {}
    for split, note in (("train", SHIP), ("val", CAR)):
        files[f"{split}.zip/{images}{stem.format(split)}.jpg"] = ""
        files[f"{split}.zip/{notes}{stem.format(split)}.xml"] = note
    result = voc.plan(packed(files))
    assert classes(result) == [
        ("train", "train.zip", stem.format("train"), ["ship", "car"]),
        ("val", "val.zip", stem.format("val"), ["car"]),
    ]
    assert result.problems == {}


@pytest.mark.parametrize("place", ["Annotations.zip/a/", "annotations/a/", "train_notes.zip/a/"])
def test_voc_annotations_in_a_zip_file_of_their_own(packed, place):
    """Two sequences, both with a frame 1: folders pair them, whatever the zip files are called."""
    files = {"train_images.zip/a/1.jpg": "", "train_images.zip/b/1.jpg": "", f"{place}1.xml": SHIP}
    result = voc.plan(packed(files | {f"{place.replace('/a/', '/b/')}1.xml": CAR}))
    assert [job[0::3] for job in classes(result)] == [("train", ["ship", "car"]), ("train", ["car"])]


def test_voc_annotations_of_another_split_are_not_borrowed(packed):
    files = {"train.zip/1.jpg": "", "train.zip/1.xml": CAR, "val.zip/1.xml": SHIP, "val.zip/2.xml": CAR}
    result = voc.plan(packed(files | {"train.zip/2.jpg": ""}), names=["car"])
    assert classes(result) == [("train", "train.zip", "1", ["car"])]
    assert result.problems == {
        "annotation without image": ["1.xml", "2.xml"],
        "image without annotation": ["2.jpg"],
    }


def test_voc_one_annotation_for_images_of_two_splits_is_neithers(packed):
    files = {"train.zip/1.jpg": "", "val.zip/1.jpg": "", "Annotations.zip/1.xml": CAR}
    result = voc.plan(packed(files | {"val.zip/2.jpg": "", "Annotations.zip/2.xml": CAR}))
    assert [job[:3] for job in classes(result)] == [("val", "val.zip", "2")]
    assert result.problems == {
        "annotations and images of one name, and no folders that pair them": ["1.xml"],
        "image without annotation": ["1.jpg", "1.jpg"],
    }


def test_voc_lists_in_each_zip_file_choose_its_images(packed):
    files = {}
    for split, note in (("train", SHIP), ("val", CAR)):
        files[f"{split}.zip/ImageSets/Main/{split}.txt"] = "1\n"
        files[f"{split}.zip/JPEGImages/1.jpg"] = ""
        files[f"{split}.zip/Annotations/1.xml"] = note
    result = voc.plan(packed(files))
    assert classes(result) == [("train", "train.zip", "1", ["ship", "car"]), ("val", "val.zip", "1", ["car"])]
    assert result.problems == {}


def test_voc_lines_name_zip_files_for_folders(packed):
    files = {f"{name}.zip/1.{end}": CAR for name in ("a", "b") for end in ("jpg", "xml")}
    source = packed(files | {"ImageSets/train.txt": "a/1\n", "ImageSets/val.txt": "b/1\n"})
    assert [(job.split, job.image.where.name) for job in voc.plan(source).jobs] == [
        ("train", "a.zip"),
        ("val", "b.zip"),
    ]


def test_images_of_one_name_in_other_zip_files_are_others(packed):
    source = packed({"train.zip/a.jpg": "", "val.zip/a.dng": "", "train.zip/b.jpg": "", "train.zip/b.dng": ""})
    assert [f"{f.where.name}/{f.path}" for f in source.images] == [
        "val.zip/a.dng",
        "train.zip/a.jpg",
        "train.zip/b.jpg",
    ]
