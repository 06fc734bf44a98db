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
