"""COCO files whose names say no split: which split their images are for."""

import pytest

from tests.datasets.downloads import coco
from tests.datasets.test_coco_images import BOX, NOTE, SIX, listing, places, planned

NO_SPLIT = NOTE.replace("several splits", "no split")


def stems(result):
    """Stems by split."""
    found = {}
    for split, _, stem in places(result):
        found[split] = found.get(split, "") + stem
    return found


def named(*names):
    return coco(list(enumerate(names)), [(i, 2, BOX) for i in range(len(names))])


@pytest.mark.parametrize("name", ["all", "inshore", "a", "zz"])
def test_images_that_other_lists_name_are_left_to_them(tmp_path, name):
    """No image of val or test is trained on, whatever file is read first."""
    lists = {"train": listing(0, 1, 2), "val": listing(3, 4), "test": listing(5), name: listing(*range(6))}
    result = planned(tmp_path, SIX | {f"annotations/{k}.json": content for k, content in lists.items()})
    assert stems(result) == {"train": "012", "val": "34", "test": "5"}
    assert [len(job.read()) for job in result.jobs] == [1] * 6
    assert result.problems == {NO_SPLIT: [f"annotations/{name}.json"]}


def test_lists_of_several_splits_go_before_those_of_none(tmp_path):
    files = {"a.json": listing(*range(6)), "val.json": listing(0, 1), "train_test.json": listing(1, 2, 3)}
    result = planned(tmp_path, SIX | files)
    assert stems(result) == {"val": "01", "train": "2345"}
    assert result.problems == {NOTE: ["train_test.json"], NO_SPLIT: ["a.json"]}


@pytest.mark.parametrize(
    "names, images, expected",
    [
        (["1.jpg", "2.jpg", "3.jpg"], ["train/1.jpg", "val/2.jpg", "test2017/3.jpg"], "train val test"),
        (["train/1.jpg", "val/2.jpg"], ["images/train/1.jpg", "images/val/2.jpg"], "train val"),
        (["train/1.jpg", "val\\2.jpg"], ["images/1.jpg", "images/2.jpg"], "train val"),
        (["1.jpg", "2.jpg"], ["images/1.jpg", "val/2.jpg"], "train val"),
        (["val/1.jpg", "val/2.jpg"], ["images/1.jpg", "images/2.jpg"], "val val"),
        (["1.jpg", "2.jpg"], ["images/1.jpg", "ships/2.jpg"], "train train"),
        (["s/1.jpg", "2.jpg"], ["JPEGImages-trainval/1.jpg", "JPEGImages-test/2.jpg"], "train test"),
        # Where the data set once lay says nothing; what lies below it does
        (["/data/test/ships/1.jpg", "/data/test/ships/2.jpg"], ["images/1.jpg", "images/2.jpg"], "train train"),
        (["C:\\test\\train\\1.jpg", "C:\\test\\val\\2.jpg"], ["images/1.jpg", "images/2.jpg"], "train val"),
        (["/data/test/1.jpg"], ["images/1.jpg"], "train"),
    ],
)
def test_folders_say_the_split_of_each_image(tmp_path, names, images, expected):
    result = planned(tmp_path, {"annotations.json": named(*names)} | dict.fromkeys(images, ""))
    assert [(split, image) for split, image, _ in places(result)] == list(zip(expected.split(), images, strict=True))
    assert result.problems == {}
    assert result.yaml["val"] == ["val" if "val" in expected else "test" if "test" in expected else "train"]


def test_a_name_that_two_splits_have_means_neither(tmp_path):
    images = dict.fromkeys(["train/1.jpg", "val/1.jpg", "val/2.jpg", "masks/2.jpg"], "")
    result = planned(tmp_path, images | {"all.json": named("1.jpg", "1.jpg", "2.jpg", "val/1.jpg")})
    assert places(result) == [("val", "val/2.jpg", "2"), ("val", "val/1.jpg", "1")]
    assert result.problems.pop("more than one image of this name") == ["train: 1.jpg"] * 2
    lists = {f"{split}/{split}.json": named("1.jpg") for split in ("train", "val")}
    result = planned(tmp_path, images | lists | {"all.json": named("1.jpg", "1.jpg")})
    assert stems(result) == {"train": "1", "val": "1"}
    assert result.problems[NO_SPLIT] == ["all.json"] and "more than one image of this name" not in result.problems


def test_a_list_of_no_split_without_annotations_adds_nothing(tmp_path):
    blind = {"images": coco([(1, "5.jpg")])["images"]}
    result = planned(tmp_path, SIX | {"train.json": listing(0), "unlabeled.json": blind, "test/5.jpg": ""})
    assert stems(result) == {"train": "0"}


def test_valminusminival_is_trained_on(tmp_path):
    """COCO of 2014, the images of which lie in val2014."""
    files = {"train2014": "1.jpg", "minival2014": "2.jpg", "valminusminival2014": "3.jpg"}
    files = {f"annotations/instances_{name}.json": named(image) for name, image in files.items()}
    result = planned(tmp_path, files | dict.fromkeys(["train2014/1.jpg", "val2014/2.jpg", "val2014/3.jpg"], ""))
    assert stems(result) == {"train": "13", "val": "2"} and result.problems == {}
