"""VOC folders where images or annotations are missing: no other of the name stands in for them."""

import pytest

from ds2d2_yolo.datasets import voc
from tests.datasets.test_voc import CAR, SHIP, made, splits  # noqa: F401  a fixture among them
from tests.datasets.test_zipped_splits import packed  # noqa: F401  a fixture

LEFT = {"annotation without image": ["Annotations/seq2/1.xml"], "image without annotation": ["JPEGImages/seq1/1.jpg"]}


def sequences(*more, lists=()):
    """Two sequences with a frame 2 each, and more files; lists of frames."""
    files = {f"JPEGImages/{s}/2.jpg": b"" for s in ("seq1", "seq2")}
    files |= {f"Annotations/{s}/2.xml": CAR for s in ("seq1", "seq2")}
    files |= {name: SHIP if name.endswith("xml") else b"" for name in more}
    return files | {f"ImageSets/Main/{kind}.txt": "\n".join(lines) for kind, lines in dict(lists).items()}


def kinds(result):
    return [[result.names[k] for k in job.read().classes] for job in result.jobs]


ONE_EACH = ("JPEGImages/seq1/1.jpg", "Annotations/seq2/1.xml")


def test_an_annotation_is_not_that_of_an_image_in_another_folder(made):  # noqa: F811
    result = made(sequences(*ONE_EACH))
    assert kinds(result) == [["car"], ["car"]] and result.problems == LEFT


def test_nor_are_several_in_doubt(made):  # noqa: F811
    more = ("JPEGImages/seq3/1.jpg", "JPEGImages/seq3/2.jpg", "Annotations/seq3/2.xml")
    result = made(sequences(*ONE_EACH, *more))
    images = ["JPEGImages/seq1/1.jpg", "JPEGImages/seq3/1.jpg"]
    assert result.problems == LEFT | {"image without annotation": images}


def test_nor_is_it_a_second_one(made):  # noqa: F811
    result = made(sequences(*ONE_EACH, "Annotations/seq1/1.xml"))
    assert kinds(result).count(["ship", "car"]) == 1
    assert result.problems == {"annotation without image": ["Annotations/seq2/1.xml"]}


def test_folders_without_pairs_of_their_own_leave_no_doubt(made):  # noqa: F811
    result = made(sequences("JPEGImages/seq3/1.jpg", "Annotations/seq2/1.xml", "boxes/3.xml", "JPEGImages/seq1/3.jpg"))
    assert kinds(result).count(["ship", "car"]) == 2 and result.problems == {}


def test_a_name_that_other_folders_have_is_not_enough(made):  # noqa: F811
    """As where each folder holds one image, all of one name."""
    files = {f"JPEGImages/{s}/1.jpg": b"" for s in "abc"} | {f"Annotations/{s}/1.xml": CAR for s in "abd"}
    result = made(files)
    assert len(result.jobs) == 2 and result.problems == {
        "annotations and images of one name, and no folders that pair them": ["Annotations/d/1.xml"],
        "image without annotation": ["JPEGImages/c/1.jpg"],
    }


def test_zip_files_are_folders_in_this(packed):  # noqa: F811
    files = {f"{name}.zip/2.jpg": "" for name in "ab"} | {"a.zip/2.xml": CAR, "b.zip/2.xml": SHIP}
    result = voc.plan(packed(files | {"a.zip/1.jpg": "", "b.zip/1.xml": SHIP, "a.zip/3.xml": CAR, "a.zip/3.jpg": ""}))
    assert [(job.image.where.name, job.image.path.name) for job in result.jobs] == [
        ("a.zip", "2.jpg"),
        ("a.zip", "3.jpg"),
    ]
    assert kinds(result) == [["car"], ["car"]] and result.problems.pop("duplicate name") == ["train: 2.jpg"]
    assert result.problems == {"annotation without image": ["1.xml"], "image without annotation": ["1.jpg"]}


def test_one_annotation_is_not_that_of_images_in_two_zip_files(packed):  # noqa: F811
    result = voc.plan(packed({"a.zip/1.jpg": "", "a.zip/1.xml": CAR, "b.zip/1.jpg": ""}))
    assert [job.image.where.name for job in result.jobs] == ["a.zip"]
    assert result.problems == {"image without annotation": ["1.jpg"]}


LISTS = {"train": ["seq1/1", "seq1/2"], "val": ["seq2/1", "seq2/2"]}


@pytest.mark.parametrize("form", ["{}", "{}.jpg", "JPEGImages/{}", "/data/VOC/images/{}.jpg"])
@pytest.mark.parametrize("annotated", [False, True])
def test_a_line_with_a_folder_that_exists_means_no_other(made, form, annotated):  # noqa: F811
    lists = {kind: [form.format(line) for line in lines] for kind, lines in LISTS.items()}
    more = ("Annotations/seq1/1.xml",) if annotated else ()
    result = made(sequences(*ONE_EACH, *more, lists=lists))
    assert splits(result) == {"train": [*(["1"] if annotated else []), "2"], "val": ["2"]}
    # As a line is shown: without suffix
    problems = {**LEFT, "listed but missing": [f"val: {form.format('seq2/1').removesuffix('.jpg')}"]}
    if annotated:
        del problems["image without annotation"]
    problems["listed but missing"] = [name.replace("val: /", "val: //") for name in problems["listed but missing"]]
    assert result.problems == problems


def test_a_line_with_a_folder_that_is_gone_means_no_image_of_anothers(made):  # noqa: F811
    files = sequences("JPEGImages/seq1/1.jpg", "Annotations/seq1/1.xml")
    lists = {"train": "seq3/1\nseq1/2", "val": "seq1/1\nSEQ2/2"}
    result = made(files | {f"ImageSets/{kind}.txt": lines for kind, lines in lists.items()})
    assert [(job.split, str(job.image.path)) for job in result.jobs] == [
        ("train", "JPEGImages/seq1/2.jpg"),
        ("val", "JPEGImages/seq1/1.jpg"),
        ("val", "JPEGImages/seq2/2.jpg"),
    ]
    assert result.problems == {"listed but missing": ["train: seq3/1"]}


def test_an_image_annotated_in_another_folder_as_well(made):  # noqa: F811
    result = made(
        {"images/1.jpg": b"", "images/2.jpg": b"", "xml/1.xml": CAR, "xml_fixed/1.xml": SHIP, "xml/2.xml": CAR}
    )
    assert kinds(result) == [["car"], ["car"]]
    assert result.problems == {"second annotation of an image": ["xml_fixed/1.xml"]}
