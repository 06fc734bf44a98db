"""A data set, a teacher, a student, and trainers of them."""

import pytest
from ultralytics.utils import YAML

from ds2d2_yolo.datasets.demo import NAMES, prepare
from ds2d2_yolo.engine.trainer import DS2D2Trainer
from tests.helpers.checkpoints import save_checkpoint
from tests.helpers.distilling import tiny
from tests.helpers.steps import OWN, SIZE, begin, finish_epoch, step


@pytest.fixture(scope="package")
def data(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("data") / "demo", train=8, val=4, size=SIZE)


@pytest.fixture(scope="package")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="package")
def layout(folder):
    """The student's YAML file: a few layers, and YOLO26's kind of head."""
    path = folder / "one_to_one.yaml"
    YAML.save(path, {k: v for k, v in tiny((8, 16, 32), end2end=True, reg_max=1).yaml.items() if k != "channels"})
    return path


@pytest.fixture(scope="package")
def teacher_pt(folder):
    teacher = tiny((8, 16, 32), width=16, nc=len(NAMES), seed=1)
    teacher.names = dict(enumerate(NAMES))
    return save_checkpoint(folder / "teacher.pt", teacher)


@pytest.fixture(scope="package")
def arguments(data, layout, teacher_pt):
    """A run of four epochs of two steps."""
    files = {"data": str(data), "model": str(layout), "teacher": str(teacher_pt)}
    sizes = {"epochs": 4, "imgsz": SIZE, "batch": 4, "nbs": 4, "optimizer": "SGD"}
    return {**files, **sizes, **OWN, "name": "run", "device": "cpu", "plots": False, "amp": False}


@pytest.fixture
def make(arguments, tmp_path):
    """Makes a trainer; `teacher=None` for a plain one."""
    return lambda **changes: DS2D2Trainer(overrides={**arguments, "project": str(tmp_path), **changes})


@pytest.fixture(scope="package")
def finished_epoch(tmp_path_factory, arguments):
    """A distilled run after its first epoch; do not change it."""
    project = str(tmp_path_factory.mktemp("runs"))
    return finish_epoch(step(begin(DS2D2Trainer(overrides={**arguments, "project": project}))))
