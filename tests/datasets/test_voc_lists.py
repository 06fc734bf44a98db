"""Split lists of VOC folders that do not lie in ImageSets."""

import pytest

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


PASSED_OVER = "split list outside ImageSets/Main (passed over)"


def test_lists_that_contradict_each_other_are_passed_over(made):  # noqa: F811
    """As of a cross-validation."""
    files = listed("fold1/", {"train": "abc", "val": "d"}) | listed("fold2/", {"train": "bcd", "val": "a"})
    result = made(files)
    assert splits(result) == {"train": [*"abcd"]}
    assert result.problems == {PASSED_OVER: [f"fold{k}/{kind}.txt" for k in (1, 2) for kind in ("train", "val")]}
    same = {"fold2/train.txt": "c\nb\na\n", "fold2/val.txt": "d\n"}
    assert splits(made(same)) == {"train": [*"abc"], "val": ["d"]}


def test_each_data_set_in_the_source_has_its_own(made):  # noqa: F811
    files = listed("splits/", {"train": "ab", "val": "cd"}, "A/") | listed(
        "splits/", {"train": "cd", "val": "ab"}, "B/"
    )
    found = {(job.split, job.image.path.parts[0], job.image.path.stem) for job in made(files).jobs}
    train = {("train", "A", "a"), ("train", "A", "b"), ("train", "B", "c"), ("train", "B", "d")}
    assert {one for one in found if one[0] == "train"} == train and len(found) == 8


@pytest.mark.parametrize(
    "lists",
    [
        {"test": "train1"},
        {"train": "train/train1.jpg"},
        {"train/train": "train1", "valid/val": "valid1"},
        {"fold1/train": "train1", "fold2/train": "valid1"},
        {"train": "valid1", "old/val": "train1"},
    ],
)
def test_folders_of_splits_go_before(made, lists):  # noqa: F811
    folders = ("train", "valid", "test")
    files = {f"{s}/{s}1.{e}": CAR if e == "xml" else b"" for s in folders for e in ("jpg", "xml")}
    result = made(files | {f"{name}.txt": f"{line}\n" for name, line in lists.items()})
    assert splits(result) == {"train": ["train1"], "val": ["valid1"], "test": ["test1"]}
    assert result.problems == {PASSED_OVER: sorted(f"{name}.txt" for name in lists)}


@pytest.mark.parametrize(
    "lists, expected",
    [
        ({"test": "cd"}, {"train": [*"ab"], "test": [*"cd"]}),
        ({"val": "c", "test": "d"}, {"train": [*"ab"], "val": ["c"], "test": ["d"]}),
        ({"train": "ab"}, {"train": [*"ab"]}),
        ({"trainval": "abc", "val": "c"}, {"train": [*"ab"], "val": ["c"]}),
    ],
)
def test_without_a_list_to_train_on_the_rest_is_for_it(made, lists, expected):  # noqa: F811
    result = made(listed("", lists))
    assert {split: sorted(stems) for split, stems in splits(result).items()} == expected
    left = sorted({*"abcd"}.difference(*expected.values()))
    assert result.problems == ({"in no split list": [f"JPEGImages/{stem}.jpg" for stem in left]} if left else {})
    files = {f"ImageSets/Main/{kind}.txt": "\n".join(lines) for kind, lines in lists.items()}
    expected.pop("train") if not {"train", "trainval"} & lists.keys() else None
    assert splits(made(files)) == expected


def test_a_data_set_beside_one_with_lists_to_train_on(made):  # noqa: F811
    files = listed("", {"train": "ab", "val": "cd"}, "A/") | listed("", {"test": "d"}, "B/")
    found = {(job.split, job.image.path.parts[0], job.image.path.stem) for job in made(files).jobs}
    assert {stem for split, root, stem in found if (split, root) == ("train", "B")} == {*"abc"} and len(found) == 8


def test_an_image_that_a_list_may_mean_is_not_trained_on(made):  # noqa: F811
    files = {f"{s}/{i}.{e}": CAR if e == "xml" else b"" for s in ("s1", "s2") for i in "ab" for e in ("jpg", "xml")}
    result = made(files | {"test.txt": "gone/a\ns1/b\n"})
    assert splits(result) == {"test": ["b"], "train": ["b"]}
    assert result.problems["in no split list"] == ["s1/a.jpg", "s2/a.jpg"]
