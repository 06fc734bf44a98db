"""Which image an entry of COCO's JSON means, and what becomes of one that is named twice."""

import json

import pytest

from ds2d2_yolo.datasets.coco_json import plan
from ds2d2_yolo.datasets.source import Source
from tests.datasets.downloads import coco, write

BOX = [0, 0, 1, 1]


def planned(root, files):
    for name, content in files.items():
        write(root / name, content if isinstance(content, str) else json.dumps(content))
    return plan(Source(root))


def places(result):
    return [(job.split, str(job.image.path), job.stem) for job in result.jobs]


@pytest.mark.parametrize("name", ["train/x.jpg", "x.jpg"])
@pytest.mark.parametrize("place", ["train/a.json", "annotations/instances_train.json"])
def test_another_splits_image_of_the_name_is_not_taken(tmp_path, name, place):
    """train/x.jpg was lost; valid/x.jpg shows something else."""
    files = {place: coco([(1, name), (2, "y.jpg")], [(1, 2, BOX)]), "valid/b.json": coco([(1, "x.jpg")], [(1, 7, BOX)])}
    result = planned(tmp_path, files | dict.fromkeys(["train/y.jpg", "valid/x.jpg"], ""))
    assert places(result) == [("train", "train/y.jpg", "y"), ("val", "valid/x.jpg", "x")]
    assert result.problems == {"in another split's folder alone": [f"train: {name}"]}


def test_a_folder_of_another_split_is_no_match_even_alone(tmp_path):
    result = planned(tmp_path, {"train.json": coco([(1, "train/x.jpg")], [(1, 2, BOX)]), "val/x.jpg": ""})
    assert result.jobs == [] and result.problems["in another split's folder alone"] == ["train: train/x.jpg"]


@pytest.mark.parametrize(
    "name, image",
    [
        ("x.jpg", "train/x.jpg"),  # all there is lies in train, val.json chooses from it
        ("train/x.jpg", "train/x.jpg"),
        ("x.jpg", "JPEGImages-trainval/x.jpg"),
        ("val/x.jpg", "images-trainval/x.jpg"),
        ("val/x.jpg", "images/x.jpg"),
        ("deep/x.jpg", "validation/x.jpg"),
    ],
)
def test_folders_that_contradict_no_split(tmp_path, name, image):
    result = planned(tmp_path, {"annotations/val.json": coco([(1, name)], [(1, 2, BOX)]), image: "", "test/t.jpg": ""})
    assert places(result) == [("val", image, "x")]


@pytest.mark.parametrize("image", ["train/x.jpg", "val/x.jpg"])
def test_trainval_lists_both(tmp_path, image):
    files = {"instances_trainval.json": coco([(1, "x.jpg")], [(1, 2, BOX)]), image: "", "train/y.jpg": ""}
    assert places(planned(tmp_path, files)) == [("train", image, "x")]


def test_two_files_that_annotate_the_same_image(tmp_path):
    """Ships in one, cars in the other."""
    ships, cars = coco([(1, "x.jpg"), (2, "y.jpg")], [(1, 7, BOX)]), coco([(5, "x.jpg")], [(5, 2, BOX), (5, 99, BOX)])
    files = dict.fromkeys(["x.jpg", "y.jpg"], "") | {"train_ships.json": ships, "train_cars.json": cars}
    result = planned(tmp_path, files)
    objects = {job.stem: job.read() for job in result.jobs}
    assert objects["x"].classes.tolist() == [0, 1] and objects["x"].problems == {"unknown class '99'": 1}
    assert len(objects["y"]) == 0 and objects["x"].size == (40, 30)
    assert result.problems == {"listed twice (the objects of both are taken)": ["train: x.jpg"]}
    cars["images"][0]["width"] = 80  # of another image, or scaled
    result = planned(tmp_path, files | {"train_ships.json": ships, "train_cars.json": cars})
    assert [job.read().classes.tolist() for job in result.jobs if job.stem == "x"] == [[0]]
    assert result.problems == {"duplicate name": ["train: x.jpg, 1 objects left out"]}


def listing(*numbers):
    return coco([(i, f"{i}.jpg") for i in numbers], [(i, 2, BOX) for i in numbers])


SIX = {f"{i}.jpg": "" for i in range(6)}
NOTE = "list of several splits (images that other lists name are left to them)"


@pytest.mark.parametrize(
    "lists, several, expected",
    [
        ({"train": "0123", "val": "45"}, "instances_trainval", {"train": "0123", "val": "45"}),
        ({"train2017": "0123", "test2017": "45"}, "train_test2017", {"train": "0123", "test": "45"}),
        ({"train2017": "0123", "val2017": "4"}, "train_val2017", {"train": "01235", "val": "4"}),
        ({"train": "0123"}, "trainval", {"train": "0123", "val": "45"}),
        ({"val": "45"}, "trainval", {"train": "0123", "val": "45"}),
        ({"train": "0123"}, "test_train", {"train": "0123", "test": "45"}),
        ({"test": "45"}, "trainval", {"train": "0123", "test": "45"}),
    ],
)
def test_of_a_list_of_several_splits_comes_what_no_other_lists(tmp_path, lists, several, expected):
    """No image of val or test is trained on, whatever file is read first."""
    files = {f"annotations/{name}.json": listing(*map(int, numbers)) for name, numbers in lists.items()}
    result = planned(tmp_path, SIX | files | {f"annotations/{several}.json": listing(*range(6))})
    found = {}
    for split, _, stem in places(result):
        found[split] = found.get(split, "") + stem
    assert found == expected and [len(job.read()) for job in result.jobs] == [1] * 6
    assert result.problems == {NOTE: [f"annotations/{several}.json"]}


@pytest.mark.parametrize("several, split", [("trainval", "train"), ("train_test2017", "train"), ("test_train", "test")])
def test_a_list_of_several_splits_alone_is_the_firsts(tmp_path, several, split):
    result = planned(tmp_path, SIX | {f"{several}.json": listing(*range(6))})
    assert {job.split for job in result.jobs} == {split} and len(result.jobs) == 6 and result.problems == {}


def test_what_is_missing_of_two_lists_is_missing_once(tmp_path):
    files = {"train.json": listing(0, 7), "val.json": listing(0, 1), "trainval.json": listing(0, 1, 7, 8)}
    result = planned(tmp_path, SIX | files)
    assert result.problems.pop("listed but missing") == ["train: 7.jpg", "train: 8.jpg"]
    assert result.problems.pop("in two split lists") == ["0.jpg"]  # that they say so themselves stays as they say
    assert places(result) == [("train", "0.jpg", "0"), ("val", "0.jpg", "0"), ("val", "1.jpg", "1")]
