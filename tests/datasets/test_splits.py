"""Which folders are a split's."""

import pytest

from ds2d2_yolo.datasets import dota
from ds2d2_yolo.datasets.source import Source
from ds2d2_yolo.datasets.splits import UNCLEAR, possible_splits, split_of_folders
from tests.datasets.downloads import coco, label_txt, write
from tests.datasets.test_coco_images import places, planned
from tests.datasets.test_voc import CAR, made, splits  # noqa: F401  a fixture among them

CLASSES = ["airport", "train_station", "test_track", "validation_site"]


@pytest.mark.parametrize(
    "names, split",
    [
        (
            "train training train2017 train_images images_train train-images Train train_part1 train_1024 train.v2i",
            "train",
        ),
        ("trainval JPEGImages-trainval trainval2007 trainval_set train_val trainset_train VOC2012trainval", "train"),
        ("val valid validation val2017 val_set images-val val-large VisDrone2019-DET-val minival2014", "val"),
        ("test testing JPEGImages-test DIOR_test test_part1 test-dev VisDrone2019-DET-test-dev test_original", "test"),
    ],
)
def test_folders_of_splits(names, split):
    assert {name: split_of_folders(["data", name, "images"]) for name in names.split()} == dict.fromkeys(
        names.split(), split
    )


@pytest.mark.parametrize(
    "name", [*CLASSES, "my-test-data", "my test data", "latest", "trainer", "values", "test_image_site"]
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
    # One of them may be a split's all the same, which must not be trained on unseen
    assert result.problems == {UNCLEAR: [f"{root}{name}" for name in sorted(CLASSES[1:])]}
    result = made(
        {f"val/{name}": content for name, content in files.items()} | {"train/a.jpg": b"", "train/a.xml": CAR}
    )
    assert len(splits(result)["val"]) == 4


def test_coco_sorted_by_class(tmp_path):
    notes = coco([(1, "x.jpg")], [(1, 2, [0, 0, 1, 1])])
    files = {"annotations/val.json": notes, "images/train_station/x.jpg": "", "val/y.jpg": ""}
    assert places(planned(tmp_path, files)) == [("val", "images/train_station/x.jpg", "x")]


def test_dota_names_what_it_takes_for_no_split(tmp_path):
    for split in ("train", "val_ships"):
        write(tmp_path / split / "images" / f"{split}1.png", "")
        row = label_txt([(((0, 0), (9, 0), (9, 9), (0, 9)), "ship", 0)])
        write(tmp_path / split / "labelTxt" / f"{split}1.txt", row)
    result = dota.plan(Source(tmp_path))
    assert {job.split for job in result.jobs} == {"train"} and result.problems[UNCLEAR] == ["val_ships/images"]
