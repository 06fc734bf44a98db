"""The published configurations as files: which there are, and that they say what the paper's tables say."""

import random
from itertools import product
from pathlib import Path

import pytest
import torch
from ultralytics.cfg import DEFAULT_CFG_PATH, get_cfg
from ultralytics.data import build_yolo_dataset
from ultralytics.data.utils import check_det_dataset
from ultralytics.utils import YAML

from ds2d2_yolo.cli import parse
from ds2d2_yolo.datasets.demo import prepare
from ds2d2_yolo.engine import settings
from ds2d2_yolo.engine import train as training
from ds2d2_yolo.paths import CFG, find_config

FOLDER = CFG / "recipes"
SIZES = {"dior": 800, "dota": 1024}
RATES = {"retinanet": 0.005, "faster-rcnn": 0.02}
TEACHERS, STUDENTS = ("r101", "x101"), ("r18", "r34", "r50")
TERMS = ("ex_low", "ex_high", "im_full", "im_high")
WEIGHTS = {
    ("retinanet", "dior"): (1e-5, 1e-5, 1, 1),
    ("retinanet", "dota"): (7e-5, 5e-5, 0.7, 0.5),
    ("faster-rcnn", "dior"): (0.5, 0.5, 1e-5, 1e-5),
    ("faster-rcnn", "dota"): (0.12, 1.2, 1.5e-3, 3e-3),
}
TRAINING = {
    "max_det": 100,
    "epochs": 24,
    "batch": 16,
    "nbs": 16,
    "optimizer": "SGD",
    "momentum": 0.9,
    "nesterov": False,
    "weight_decay": 1e-4,
    "warmup_iterations": 500,
    "lr_steps": [16, 22],
    "lr_gamma": 0.1,
    "backbone_weights": "imagenet",
}
DISTILLING = {
    "amplifier_epochs": 24,
    "balance": "fixed",
    "clip": "all",
    "distill_warmup": 0,
    "distill_final": 1,
    "normalize": "none",
    "align": False,
    "adapter": "auto",
    "disw": True,
    "wavelet": "haar",
    "wavelet_padding": "zero",
    "published": True,
}
# name -> data, detector, teacher's backbone, student's backbone (none in the recipe of a teacher)
MATRIX = {"-".join(filter(None, parts)): parts for parts in product(SIZES, RATES, TEACHERS, (None, *STUDENTS))}


def recipe(name):
    return YAML.load(FOLDER / f"{name}.yaml")


def augmentations():
    """What Ultralytics' defaults say of augmentation, without what is for segmentation or classification alone."""
    names = list(YAML.load(DEFAULT_CFG_PATH))
    names = names[names.index("hsv_h") : names.index("erasing") + 1]
    return set(names) - {"copy_paste_mode", "auto_augment"}


def test_the_files_are_the_published_matrix():
    assert {path.name for path in FOLDER.iterdir()} == {f"{name}.yaml" for name in MATRIX}
    assert len(MATRIX) == 32


@pytest.mark.parametrize("name", MATRIX)
def test_every_setting_is_known_and_taken_as_it_is_written(name):
    written = recipe(name)
    assert settings.check(written) == {**written, "data": find_config(written["data"], "data")}
    args = get_cfg({**vars(get_cfg()), **settings.defaults()}, written)
    assert {key: getattr(args, key) for key in written} == written


@pytest.mark.parametrize("name", MATRIX)
def test_a_recipe_is_what_its_name_says(name):
    data, detector, teacher, student = MATRIX[name]
    content = recipe(name)
    assert content["data"] == f"{data}.yaml"
    assert content["model"] == f"{detector}-{student or teacher}.yaml"
    assert Path(find_config(content["model"], "model")).is_file()
    assert content["imgsz"] == SIZES[data]
    assert content["lr0"] == RATES[detector]
    assert {key: content[key] for key in TRAINING} == TRAINING
    distilling = {key: content[key] for key in content if key in {*TERMS, *DISTILLING}}
    if student:
        assert distilling == DISTILLING | dict(zip(TERMS, WEIGHTS[detector, data], strict=True))
    else:
        assert distilling == {}
    assert "teacher" not in content
    assert set(content) == {"data", "model", "imgsz", "lr0", *TRAINING, *distilling, *augmentations()} | {
        "close_mosaic",
        "multi_scale",
        "augmentations",
    }


@pytest.mark.parametrize("name", MATRIX)
def test_a_recipe_begins_with_what_it_is_and_its_command(name):
    data, detector, teacher, student = MATRIX[name]
    what, command, *_ = (FOLDER / f"{name}.yaml").read_text().splitlines()
    full = {"r18": "ResNet-18", "r34": "ResNet-34", "r50": "ResNet-50", "r101": "ResNet-101"}
    full["x101"] = "ResNeXt-101 64x4d"
    assert what.startswith("# ") and what.endswith("numbers are the published ones.")
    assert {"retinanet": "RetinaNet", "faster-rcnn": "Faster R-CNN"}[detector] in what
    assert data.upper() in what and full[teacher] in what and full[student or teacher] in what
    assert command.startswith(f"#   python train.py cfg={name}.yaml")
    assert ("teacher=" in command) == bool(student)
    if student:
        assert command.endswith(f"/{data}-{detector}-{teacher}")


def test_the_command_line_finds_recipe_and_model_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = parse(["cfg=dior-retinanet-r101-r18.yaml", "batch=4", "lr_steps=8,11"])
    assert given["model"] == str(CFG / "models" / "retinanet-r18.yaml")
    assert (given["batch"], given["imgsz"], given["im_high"]) == (4, 800, 1.0)
    assert settings.check(given)["lr_steps"] == [8, 11]


def test_python_finds_recipe_and_model_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "DS2D2Trainer", lambda overrides: overrides)
    monkeypatch.setattr(training, "_run", lambda overrides: overrides)
    given = training.train({"cfg": "dior-retinanet-r101-r18.yaml", "data": "demo.yaml", "batch": 4})
    assert given["model"] == str(CFG / "models" / "retinanet-r18.yaml")
    assert given["data"] == find_config("demo.yaml", "data") != "demo.yaml"
    assert (given["batch"], given["imgsz"], given["im_high"]) == (4, 800, 1.0)


# ---- flips, and nothing else


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """The training data as the recipe `name` makes them, and as they are."""
    data = check_det_dataset(prepare(tmp_path_factory.mktemp("data") / "demo", train=3, val=1, size=96))

    def build(name, **changes):
        args = get_cfg({**vars(get_cfg()), **settings.defaults()}, {**recipe(name), "imgsz": 96, **changes})
        return build_yolo_dataset(args, data["train"], 1, data, mode="train", stride=32)

    return build


@pytest.mark.parametrize("name", ["dior-retinanet-r101-r18", "dota-faster-rcnn-x101"])
def test_images_are_flipped_or_left_as_they_are(dataset, name):
    random.seed(0)  # Ultralytics draws from here
    augmented, flips = dataset(name), []
    for index, plain in enumerate(dataset(name, fliplr=0.0)):
        for _ in range(16):
            found = augmented[index]
            flipped = torch.equal(found["img"], plain["img"].flip(2))
            assert flipped or torch.equal(found["img"], plain["img"])
            boxes = plain["bboxes"].clone()
            if flipped:
                boxes[:, 0] = 1 - boxes[:, 0]
            torch.testing.assert_close(found["bboxes"], boxes)
            flips.append(flipped)
    assert 10 < sum(flips) < 38  # of 48
    raw = torch.from_numpy(augmented.load_image(0)[0][..., ::-1].copy()).permute(2, 0, 1)
    assert any(torch.equal(augmented[0]["img"], raw) for _ in range(32))


def test_ultralytics_defaults_would_do_more(dataset):
    """What the test above sees is not blind to other augmentations."""
    changed = [dataset("dior-retinanet-r101-r18", **{key: 0.5}) for key in ("hsv_v", "scale", "translate")]
    plain = dataset("dior-retinanet-r101-r18", fliplr=0.0)[0]["img"]
    for augmented in changed:
        images = [augmented[0]["img"] for _ in range(4)]
        assert any(not torch.equal(i, plain) and not torch.equal(i, plain.flip(2)) for i in images)
