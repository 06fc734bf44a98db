"""Split lists of VOC folders that do not lie in ImageSets."""

import pytest

from ds2d2_yolo.errors import UserError
from tests.datasets.test_voc import CAR, made, splits, voc  # noqa: F401  a fixture among them


def listed(place, lists, root=""):
    """Images a to d of VOC's layout, and lists in a folder of it."""
    files = {name.removeprefix("x/"): content for name, content in voc("abcd", {}, "x").items()}
    files |= {f"{place}{kind}.txt": "\n".join(lines) + "\n" for kind, lines in lists.items()}
    return {root + name: content for name, content in files.items()}


THREE = {"train": "ab", "val": "c", "test": "d"}
SPLIT = {"train": ["a", "b"], "val": ["c"], "test": ["d"]}


@pytest.mark.parametrize("place", ["", "splits/", "ImageSets/", "ImageSets/Detection/", "JPEGImages/", "a/b/"])
@pytest.mark.parametrize("root", ["", "VOC2007/"])
def test_lists_anywhere_are_read_and_named(made, capsys, place, root):  # noqa: F811
    result = made(listed(place, THREE, root))
    assert splits(result) == SPLIT and result.problems == {}
    names = ", ".join(f"{root}{place}{kind}.txt" for kind in ("test", "train", "val"))
    assert capsys.readouterr().out == f"splits by lists: {names}\n"


@pytest.mark.parametrize(
    "line", ["./JPEGImages/{}.jpg", "/data/x/JPEGImages/{}.jpg", "{}  1", "./JPEGImages/{0}.jpg ./Annotations/{0}.xml"]
)
def test_lines_of_all_forms(made, line):  # noqa: F811
    assert splits(made(listed("", {k: [line.format(v) for v in vs] for k, vs in THREE.items()}))) == SPLIT


def test_those_in_image_sets_go_before(made):  # noqa: F811
    files = listed("ImageSets/Main/", THREE) | {"train.txt": "d\n", "splits/val.txt": "a\n"}
    assert splits(made(files)) == SPLIT


@pytest.mark.parametrize(
    "name", ["classes", "labels", "README", "train_old", "car_train", "ImageSets/Segmentation/val"]
)
def test_other_texts_are_no_lists(made, capsys, name):  # noqa: F811
    result = made(listed("", {name: "ab"}))
    assert splits(result) == {"train": [*"abcd"]} and result.problems == {} and capsys.readouterr().out == ""


def test_a_text_that_names_no_image_is_named(made):  # noqa: F811
    """labels/train.txt may be YOLO's label of train.jpg."""
    result = made(
        listed("", {}) | {"labels/train.txt": "0 0.5 0.5 0.1 0.1\n", "test.txt": "\n", "val.txt": "as agreed"}
    )
    assert splits(result) == {"train": [*"abcd"]}
    assert result.problems == {"called like a split list, names no image": ["labels/train.txt", "val.txt"]}


def test_the_list_nearest_to_the_root_counts(made):  # noqa: F811
    result = made(listed("", THREE) | {"old/train.txt": "c\nd\n", "old/val.txt": "a\n"})
    assert splits(result) == SPLIT
    assert result.problems == {"split list passed over for those above it": ["old/train.txt", "old/val.txt"]}


def test_one_list_of_two_folders_must_be_chosen(made):  # noqa: F811
    files = listed("fold1/", {"train": "abc", "val": "d"}) | listed("fold2/", {"train": "bcd", "val": "a"})
    with pytest.raises(UserError, match="'fold1/train.txt' and 'fold2/train.txt' differ; leave one of them"):
        made(files)
    assert splits(made({"fold2/train.txt": "a\nb\nc\n", "fold2/val.txt": "d\n"}))["val"] == ["d"]


def test_each_data_set_in_the_source_has_its_own(made):  # noqa: F811
    files = listed("splits/", {"train": "ab", "val": "cd"}, "A/") | listed(
        "splits/", {"train": "cd", "val": "ab"}, "B/"
    )
    found = {(job.split, job.image.path.parts[0], job.image.path.stem) for job in made(files).jobs}
    train = {("train", "A", "a"), ("train", "A", "b"), ("train", "B", "c"), ("train", "B", "d")}
    assert {one for one in found if one[0] == "train"} == train and len(found) == 8


def test_folders_of_splits_are_not_left_out_for_a_list_of_another(made):  # noqa: F811
    files = {f"{s}/{s}1.{e}": CAR if e == "xml" else b"" for s in ("train", "valid") for e in ("jpg", "xml")}
    result = made(files | {"test.txt": "train1\n"})
    assert splits(result) == {"train": ["train1"], "val": ["valid1"]}
    assert result.problems == {"split list passed over, as none says what is for training": ["test.txt"]}


def test_without_folders_of_splits_nothing_that_is_for_validation_is_trained_on(made):  # noqa: F811
    result = made(listed("", {"val": "cd"}))
    assert splits(result) == {"val": ["c", "d"]} and len(result.problems["in no split list"]) == 2
