"""What is refused before Ultralytics sees it, and what is not."""

from pathlib import Path

import pytest
from torch import nn
from ultralytics.cfg import DEFAULT_CFG_DICT
from ultralytics.utils import ROOT

from ds2d2_yolo.errors import UserError
from ds2d2_yolo.paths import DATA
from ds2d2_yolo.plausible import check_class_numbers, check_data_file, check_settings, data_file, of_today, pixels

NAN, INF = float("nan"), float("inf")


def test_transforms_are_told_as_dictionaries_on_their_way_to_other_processes():
    check_settings({"augmentations": [{"transform": {"__class_fullname__": "Blur"}}]})
    for key, value in (("augmentations", [[1]]), ("data", [{}])):
        with pytest.raises(UserError, match=f"{key}=.* must not be a list of lists"):
            check_settings({key: value})


def test_the_defaults_pass():
    check_settings(DEFAULT_CFG_DICT)
    check_settings(dict.fromkeys(DEFAULT_CFG_DICT))  # None is for others to judge


@pytest.mark.parametrize("file", sorted(DATA.glob("*.yaml")), ids=lambda file: file.name)
def test_the_shipped_data_set_files_pass(file):
    check_data_file(file, "val")


@pytest.mark.parametrize(
    "settings",
    [
        {"imgsz": [640, 480], "batch": -1, "freeze": [0, 1], "classes": (0, 2), "cache": "ram", "seed": 2**32 - 1},
        {"imgsz": "640", "batch": 0.7, "freeze": 3, "classes": 1, "cache": False, "time": 0.5, "multi_scale": True},
        {"name": 7, "project": 3.5, "model": ["a.pt", "b.pt"], "teacher": 5, "pretrained": True, "resume": True},
        {
            "name": "a/b",
            "model": nn.Identity(),
            "lr_steps": [16, 22],
            "freeze": [0, "23.cv2"],
            "scale": [0.5, 2.0],
            "fraction": [0.5, 10],
        },
    ],
)
def test_what_makes_sense_passes(settings):
    check_settings(settings)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("imgsz", value) for value in (0, -32, True, [], [0], [640, "a"], [1, 2, 3], 1.5, NAN, {})],
        *[("batch", value) for value in (1.5, 4.0, True, INF)],
        *[("freeze", value) for value in (-1, "head", [0, "a"], [0, -1, "23.cv2"], "0,head", -1.5, {}, True)],
        *[("classes", value) for value in (-1, "ship", [0, "a"], 1.5, True)],
        *[("cache", value) for value in ("perhaps", 1, [])],
        *[("seed", value) for value in (2**32, 1e30)],
        ("workers", -1),
        ("close_mosaic", -5),
        *[("box", value) for value in (-1, NAN, INF, -INF, True)],
        *[("model", value) for value in (1, True, {}, ["a.pt", ["b.pt"]], "a\0b", "\udcff")],
        *[("name", value) for value in ("..", "/", "a/..", "x" * 300, True, ["a"])],
        *[("data", value) for value in (1, ["a.yaml"], NAN)],
        (1, 2),
    ],
)
def test_what_makes_none_is_refused(key, value):
    with pytest.raises(UserError, match=str(key)) as caught:
        check_settings({key: value})
    assert "\n" not in str(caught.value)


def test_a_list_of_lists_may_be_endless():
    endless = []
    endless.append(endless)
    with pytest.raises(UserError, match="classes=.* must not be a list of lists"):
        check_settings({"classes": endless})


def test_a_split_that_is_missing_is_named_with_those_that_are_there(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("train: a\nval: b\ntest:\nnames: {0: ship}\n")
    check_data_file(file, "val")
    with pytest.raises(UserError, match=r"mine\.yaml' has no split 'test'; it has train, val"):
        check_data_file(file, "test")
    check_data_file(tmp_path, "val")  # a folder: Ultralytics looks for the file in it


@pytest.mark.parametrize("names", ["'0'", "'01'", "ship", "{0: ship, 2: car}", "[]", "3"])
def test_names_that_are_no_list_of_classes(tmp_path, names):
    file = tmp_path / "mine.yaml"
    file.write_text(f"train: a\nval: b\nnames: {names}\n")
    with pytest.raises(UserError, match=r"'names:' must give every class from 0 on a name, as in \[ship, plane\]"):
        check_data_file(file, "val")


def test_a_split_may_have_ultralytics_other_name(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("train: a\nvalidation: b\nnames: {0: ship}\n")
    check_data_file(file, "val")
    with pytest.raises(UserError, match="has no split 'test'; it has train, val"):
        check_data_file(file, "test")


def test_a_data_set_is_found_as_in_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("VisDrone", "VisDrone.yaml"):
        assert Path(data_file(name)) == ROOT / "cfg/datasets/VisDrone.yaml"
    mine = tmp_path / "VisDrone.yaml"
    mine.touch()
    assert data_file("VisDrone.yaml") == "VisDrone.yaml" and data_file(mine) == str(mine)
    assert Path(data_file("VisDrone")) == mine.relative_to(tmp_path)
    for nowhere in (
        "nn",
        "datasets",
        "nowhere.yaml",
        "nowhere",
        "cfg/VisDrone.yaml",
        "Vis*.yaml",
        "https://host/VisDrone.yaml",
    ):
        with pytest.raises(UserError, match="data file '.*' does not exist"):
            data_file(nowhere)


def test_classes_are_those_of_the_data():
    for classes in (None, 0, [0, 1], ()):
        check_class_numbers(classes, {0: "ship", 1: "plane"})
    with pytest.raises(UserError, match=r"classes=\[\] leaves no class; leave classes= out"):
        check_settings({"classes": []})
    with pytest.raises(UserError, match="classes=2: the data have 2 classes"):
        check_class_numbers([0, 2], {0: "ship", 1: "plane"})


def test_older_names_of_settings():
    given = {"model": "big.pt", "data": "x.yaml"}
    older = {**given, "half": True, "end2end": True}
    assert of_today(older) == {**given, "quantize": 16, "nms": False}
    assert of_today({**given, "half": False}) == {**given, "quantize": None}
    assert of_today({**given, "nms": True}) == {**given, "nms": True}


@pytest.mark.parametrize(
    "given, taken", [("640", 640), ("480,640", [480, 640]), ("[480, 640]", [480, 640]), (640, 640), (None, None)]
)
def test_image_sizes_as_text(given, taken):
    assert pixels(given) == taken


@pytest.mark.parametrize("given", ["large", "0", "1,2,3", "640.5", "1e3", ""])
def test_texts_that_are_no_image_size(given):
    with pytest.raises(UserError, match=f"imgsz={given} must be"):
        pixels(given)


def test_one_image_a_batch_is_a_whole_number():
    with pytest.raises(UserError, match="batch=1.0 must be a whole number of images"):
        check_settings({"batch": 1.0})  # which Ultralytics takes for a share of a GPU's memory


@pytest.mark.parametrize("channels", ["0", "-1", "true", "1.5"])
def test_channels_of_a_data_file_that_are_no_number(tmp_path, channels):
    file = tmp_path / "mine.yaml"
    file.write_text(f"train: a\nval: b\nnames: [ship]\nchannels: {channels}\n")
    with pytest.raises(UserError, match=r"'channels: .*' must be a whole number of at least 1"):
        check_data_file(file, "val")
