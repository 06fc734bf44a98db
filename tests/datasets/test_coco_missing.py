"""COCO files that list images which are not there: no other image gets their boxes. And names in another case."""

import json

import pytest

from ds2d2_yolo.datasets import coco_images
from ds2d2_yolo.datasets.coco_json import plan
from ds2d2_yolo.datasets.source import Source
from ds2d2_yolo.errors import UserError
from tests.datasets.downloads import coco
from tests.datasets.test_coco_images import BOX, places, planned


def listing(**categories):
    """A file that lists images by name, each with one object of a category."""
    names = list(categories)
    return coco(list(enumerate(names)), [(i, category, BOX) for i, category in enumerate(categories.values())])


def classes(result):
    return {(job.split, str(job.image.path)): [result.names[k] for k in job.read().classes] for job in result.jobs}


@pytest.mark.parametrize("above", ["", "images/", "/data/set/", "C:\\set\\"])
@pytest.mark.parametrize("order", [1, -1])
def test_boxes_of_a_missing_image_are_not_anothers(tmp_path, above, order):
    names = [f"{above}seq1/1.jpg", f"{above}seq2/1.jpg"][::order]
    content = listing(**dict(zip(names, [7, 2][::order], strict=True)))
    result = planned(tmp_path, {"train.json": content, "images/seq2/1.jpg": ""})
    assert classes(result) == {("train", "images/seq2/1.jpg"): ["car"]}
    assert result.problems == {"listed but missing": [f"train: {above}seq1/1.jpg"]}


def test_nor_are_they_where_its_size_is_another(tmp_path):
    content = listing(**{"seq1/1.jpg": 7, "seq2/1.jpg": 2})
    content["images"][0]["width"] = 400
    result = planned(tmp_path, {"train.json": content, "images/seq2/1.jpg": ""})
    assert classes(result) == {("train", "images/seq2/1.jpg"): ["car"]}
    assert result.problems == {"listed but missing": ["train: seq1/1.jpg"]}


@pytest.mark.parametrize("lost, own", [("train", "val"), ("val", "train"), ("train", "test"), ("all", "test")])
def test_images_of_a_split_do_not_stand_in_for_those_of_another(tmp_path, lost, own):
    files = {f"annotations/{lost}.json": listing(**{"seq1/1.jpg": 7, "seq1/2.jpg": 7})}
    files[f"annotations/{own}.json"] = listing(**{"seq2/1.jpg": 2})
    result = planned(tmp_path, files | dict.fromkeys(["images/seq2/1.jpg", "images/seq1/2.jpg"], ""))
    splits = [split.replace("all", "train") for split in (lost, own)]
    expected = {(splits[0], "images/seq1/2.jpg"): ["ship"], (splits[1], "images/seq2/1.jpg"): ["car"]}
    assert classes(result) == expected
    assert result.problems == {"listed but missing": [f"{splits[0]}: seq1/1.jpg"]}


def test_nor_several_of_another_list_for_one(tmp_path):
    content = listing(**{f"seq{i}/1.jpg": 7 for i in range(3)})
    result = planned(tmp_path, {"train.json": content, "images/seq1/1.jpg": "", "images/seq2/1.jpg": ""})
    assert len(result.jobs) == 2 and result.problems == {"listed but missing": ["train: seq0/1.jpg"]}


@pytest.mark.parametrize("name", ["image_info", "captions2", "info_val", "info_trainval", "unlabelled/val"])
def test_a_list_that_supplies_nothing_claims_nothing(tmp_path, name):
    """Annotations say images/a.jpg, the images lie in train and val, as the list beside them knows."""
    files = {f"instances_{s}.json": listing(**{f"images/{s}.jpg": 7}) for s in ("train", "val")}
    files[f"{name}.json"] = {"images": listing(**{"train/train.jpg": 7, "val/val.jpg": 7})["images"]}
    result = planned(tmp_path, files | {"train/train.jpg": "", "val/val.jpg": ""})
    assert classes(result) == {(s, f"{s}/{s}.jpg"): ["ship"] for s in ("train", "val")}
    assert result.problems == {}


@pytest.mark.parametrize("name", ["all", "backup", "trainval", "trainval_test"])
def test_nor_does_one_that_names_no_split_or_several(tmp_path, name):
    files = {f"instances_{s}.json": listing(**{f"images/{s}.jpg": 7}) for s in ("train", "val")}
    files[f"{name}.json"] = listing(**{"train/train.jpg": 2, "val/val.jpg": 2})
    result = planned(tmp_path, files | {"train/train.jpg": "", "val/val.jpg": ""})
    assert classes(result) == {(s, f"{s}/{s}.jpg"): ["ship"] for s in ("train", "val")}


@pytest.mark.parametrize("names", [("train", "train_small"), ("a", "b"), ("trainval", "trainval_old")])
@pytest.mark.parametrize("order", [1, -1])
def test_nor_one_of_the_same_split(tmp_path, names, order):
    """The objects of both are taken."""
    one, other = (f"{name}.json" for name in names[::order])
    files = {one: listing(**{"data/1.jpg": 7, "data/2.jpg": 7}), other: listing(**{"train/1.jpg": 2})}
    result = planned(tmp_path, files | {"train/1.jpg": "", "train/2.jpg": ""})
    found = {(job.image.path.stem): sorted(result.names[k] for k in job.read().classes) for job in result.jobs}
    assert found == {"1": ["car", "ship"], "2": ["ship"]}
    assert result.problems == {"listed twice (the objects of both are taken)": ["train: train/1.jpg"]}


def test_folders_that_fit_no_image_may_differ(tmp_path):
    """Those that say nothing against it, and those that no other entry knows better."""
    files = {"train_ships.json": listing(**{"seq1/1.jpg": 7}), "train_cars.json": listing(**{"1.jpg": 2})}
    files["train_more.json"] = listing(**{"/raw/images/seq1/1.jpg": 7, "old/2.jpg": 2})
    result = planned(tmp_path, files | dict.fromkeys(["images/seq1/1.jpg", "new/2.jpg"], ""))
    assert [(job.stem, len(job.read())) for job in result.jobs] == [("1", 3), ("2", 1)]
    assert list(result.problems) == ["listed twice (the objects of both are taken)"]


@pytest.mark.parametrize("image", ["1.jpg", "images/1.jpg"])
def test_one_image_for_two_folders_is_neithers(tmp_path, image):
    """As when folders were emptied into one, and the second 1.jpg replaced the first."""
    content = listing(**{"seq1/1.jpg": 7, "seq2/1.jpg": 2, "seq2/2.jpg": 2})
    result = planned(tmp_path, {"train.json": content, image: "", image.replace("1", "2"): ""})
    assert [job.stem for job in result.jobs] == ["2"]
    reason = "one image for entries of several folders"
    assert result.problems == {reason: ["train: seq1/1.jpg", "train: seq2/1.jpg"], "image without annotation": [image]}


@pytest.mark.parametrize(
    "name, images, expected",
    [
        ("a.JPG", ["images/a.jpg"], "images/a.jpg"),
        ("A.jpg", ["images/a.JPG"], "images/a.JPG"),
        ("s1/a.JPG", ["s1/a.jpg", "s2/a.jpg"], "s1/a.jpg"),
        ("S1/a.jpg", ["s1/a.jpg", "s2/a.jpg"], "s1/a.jpg"),
        ("s1/a.jpg", ["S1/a.jpg", "s1/a.jpg"], "s1/a.jpg"),
        ("a.jpg", ["s1/A.jpg", "s2/a.jpg"], "s2/a.jpg"),
        ("ÄÖ.jpg", ["äö.jpg"], "äö.jpg"),
        ("a.jpg", ["A.jpg", "a.JPG"], None),
        ("a.jpg", ["a.png"], None),
    ],
)
def test_case_is_passed_over_where_it_leaves_no_doubt(tmp_path, name, images, expected):
    result = planned(tmp_path, {"train.json": listing(**{name: 7})} | dict.fromkeys(images, ""))
    assert places(result) == ([("train", expected, expected.split("/")[-1].split(".")[0])] if expected else [])


def test_an_image_listed_to_the_letter_is_no_others(tmp_path):
    content = listing(**{"a.JPG": 7, "a.jpg": 2})
    result = planned(tmp_path, {"train.json": content, "a.jpg": ""})
    assert classes(result) == {("train", "a.jpg"): ["car"]}
    assert result.problems == {"listed but missing": ["train: a.JPG"]}


def test_many_images_of_one_name_take_no_longer(tmp_path):
    """A thousand folders, each with its 1.jpg: what is looked through for each is its own."""
    names, seen, likeness = [f"s{i}/1.jpg" for i in range(1000)], [], coco_images.likeness
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coco_images, "likeness", lambda *args: seen.append(1) or likeness(*args))
        files = {"train.json": listing(**dict.fromkeys(names, 7))} | {f"images/{name}": "" for name in names}
        assert len(planned(tmp_path, files).jobs) == 1000
    assert 0 < len(seen) < 10_000


@pytest.mark.parametrize("names", [None, ["car", "bus"]])
def test_spaces_around_a_category_are_none_of_its_name(tmp_path, names):
    categories = [{"id": 2, "name": "car "}, {"id": 7, "name": "\tbus"}]
    content = coco([(1, "a.jpg")], [(1, 2, BOX), (1, 7, BOX)], categories)
    assert planned(tmp_path, {"train.json": content, "a.jpg": ""}).names == ["car", "bus"]
    result = plan(Source(tmp_path), names)
    assert result.names == ["car", "bus"] and result.jobs[0].read().classes.tolist() == [0, 1]
    categories.append({"id": 9, "name": "car"})
    (tmp_path / "train.json").write_text(json.dumps(content))
    if names:
        assert plan(Source(tmp_path), names).names == names
        return
    with pytest.raises(UserError, match="two categories of the name 'car'"):
        plan(Source(tmp_path), names)
