"""A few scenes, models that were never trained, and every way by which a checkpoint comes in."""

import pytest
import torch
from ultralytics.utils import YAML

from ds2d2_yolo.datasets import demo
from tests.detectors import small
from tests.helpers.checkpoints import narrow_detector, save_checkpoint
from tests.helpers.training import RECIPE, one_error


@pytest.fixture(scope="package")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("good")


@pytest.fixture(scope="package")
def scenes(place):
    """The data set's YAML file."""
    return demo.prepare(place / "scenes", train=2, val=2, size=64)


@pytest.fixture(scope="package")
def detector(place, scenes):
    """A checkpoint that nothing is wrong with."""
    names = YAML.load(scenes)["names"]
    model = narrow_detector(nc=len(names))
    model.names = dict(names)
    return save_checkpoint(place / "detector.pt", model)


@pytest.fixture(scope="package")
def layout(place):
    """The YAML file of a small student."""
    backbone = [[-1, 1, "Conv", [width, 3, 2]] for width in (8, 8, 8, 8, 8)]
    YAML.save(place / "small.yaml", {"nc": 3, "backbone": backbone, "head": [[[2, 3, 4], 1, "Detect", ["nc"]]]})
    return place / "small.yaml"


@pytest.fixture(scope="package")
def retinanet(place):
    YAML.save(place / "retinanet.yaml", small.layout("retinanet"))
    return place / "retinanet.yaml"


@pytest.fixture(scope="package")
def doors(place, scenes, detector, layout, retinanet):
    """By name the command and its arguments, into which a file is put as {}."""
    image = next((scenes.parent / "images" / "val").glob("*.jpg"))
    training = [f"{key}={value}" for key, value in {**RECIPE, "data": scenes, "epochs": 1, "imgsz": 64}.items()]
    student = [*training, f"model={layout}"]
    measured = [f"data={scenes}", "imgsz=64", "latency=False", "workers=0"]
    return {
        "train model": ("train", [*training, "model={}"]),
        "train teacher": ("train", [*student, "teacher={}"]),
        "train amplifier": ("train", [*student, f"teacher={detector}", "amplifier={}"]),
        "train pretrained": ("train", [*student, "pretrained={}"]),
        "train distill_model": ("train", [*student, "distill_model={}"]),
        "train resume": ("train", ["resume={}"]),
        "train backbone_weights": ("train", [*training, f"model={retinanet}", "backbone_weights={}"]),
        "val model": ("val", ["model={}", *measured]),
        "val teacher": ("val", [f"model={detector}", "teacher={}", *measured]),
        "val explain model": ("val", [f"explain={image}", "model={}", f"teacher={detector}"]),
        "val explain teacher": ("val", [f"explain={image}", f"model={detector}", "teacher={}"]),
        "val explain amplifier": (
            "val",
            [f"explain={image}", f"model={detector}", f"teacher={detector}", "amplifier={}"],
        ),
        "export": ("export", ["model={}"]),
    }


@pytest.fixture
def enter(doors, tmp_path, monkeypatch, capsys):
    """Takes a file to a door; returns the exit code and the one line of a refusal, "" where there is none."""
    from ds2d2_yolo import cli

    def run(door, file, *more):
        monkeypatch.chdir(tmp_path)
        command, arguments = doors[door]
        into = [f"project={tmp_path / 'runs'}"] if command == "train" and "resume={}" not in arguments else []
        capsys.readouterr()
        torch.manual_seed(0)
        code = getattr(cli, command)([*(a.format(file) for a in arguments), *into, *more])
        return code, one_error(capsys) if code else ""

    return run
