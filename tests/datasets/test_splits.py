"""Which folders are a split's."""

import pytest

from ds2d2_yolo.datasets.splits import possible_splits, split_of_folders
from tests.datasets.downloads import coco
from tests.datasets.test_coco_images import places, planned
from tests.datasets.test_voc import CAR, made, splits  # noqa: F401  a fixture among them

CLASSES = ["airport", "train_station", "test_track", "Train Depots"]


@pytest.mark.parametrize(
    "names, split",
    [
        ("train training train2017 train_images images_train train-images Train train_part1 train_1024", "train"),
        ("train.v2i train_ss TrainImages trainset_train VOC2012trainval", "train"),
        ("trainval JPEGImages-trainval trainval2007 trainval_set train_val", "train"),
        ("val valid validation val2017 val_set images-val val-large VisDrone2019-DET-val minival2014", "val"),
        ("val1024_ms val_ships valset2", "val"),
        ("test testing JPEGImages-test DIOR_test test_part1 test-dev VisDrone2019-DET-test-dev", "test"),
        ("test_original test_site testset", "test"),
    ],
)
def test_folders_of_splits(names, split):
    assert {name: split_of_folders(["data", name, "images"]) for name in names.split()} == dict.fromkeys(
        names.split(), split
    )


@pytest.mark.parametrize(
    "name", [*CLASSES, "my-test-data", "my test data", "latest", "trainer", "values", "a_test_site", "testdata"]
)
def test_folders_of_something_else(name):
    assert split_of_folders([name]) is None and possible_splits([name]) == set()
    assert split_of_folders(["val", name]) == "val"


def test_a_folder_of_two_splits():
    assert possible_splits(["train_val"]) == possible_splits(["trainval"]) == {"train", "val"}


@pytest.mark.parametrize("root", ["", "VOC/JPEGImages/"])
def test_voc_sorted_by_class(made, root):  # noqa: F811
    files = {f"{root}{name}/{i}.jpg": b"" for i, name in enumerate(CLASSES)}
    files |= {f"{root}{name}/{i}.xml": CAR for i, name in enumerate(CLASSES)}
    result = made(files)
    assert splits(result) == {"train": sorted("0123", key=lambda i: CLASSES[int(i)])}
    assert not result.problems
    result = made(
        {f"val/{name}": content for name, content in files.items()} | {"train/a.jpg": b"", "train/a.xml": CAR}
    )
    assert len(splits(result)["val"]) == 4


def test_coco_sorted_by_class(tmp_path):
    notes = coco([(1, "x.jpg")], [(1, 2, [0, 0, 1, 1])])
    files = {"annotations/val.json": notes, "images/train_station/x.jpg": "", "val/y.jpg": ""}
    assert places(planned(tmp_path, files)) == [("val", "images/train_station/x.jpg", "x")]
