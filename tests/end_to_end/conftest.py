"""What the trainings share: a few drawn scenes, small models, one teacher and one student that it taught."""

import contextlib
import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from ultralytics.utils import YAML

from ds2d2_yolo.datasets import demo
from ds2d2_yolo.demo import narrower
from ds2d2_yolo.distill.model import DS2D2Model
from tests.helpers.training import digest, hang_in, listening, packages, train, weights


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="session")
def scenes(shared):
    """The data set's YAML file: 8 scenes to train on, 4 to validate on, of 96 x 96 pixels."""
    return demo.prepare(shared / "scenes", train=8, val=4, size=96)


@pytest.fixture(scope="session")
def pictures(scenes):
    return sorted((scenes.parent / "images" / "train").glob("*.jpg"))


@pytest.fixture(scope="session")
def narrow26(shared):
    return narrower("yolo26n.yaml", 0.0625, shared / "narrow26.yaml")


@pytest.fixture(scope="session")
def student(shared):
    """A student of five convolutions that meets the teacher's widths at the coarsest level alone."""
    return _convolutions(shared / "student.yaml", (8, 12, 16, 32, 64))


@pytest.fixture(scope="session")
def small(shared):
    """A student of five convolutions, half as wide as the teacher."""
    return _convolutions(shared / "small.yaml", (8, 12, 16, 24, 32))


@pytest.fixture(scope="session")
def one_to_one(shared):
    """One with YOLO26's kind of head."""
    return _convolutions(shared / "one_to_one.yaml", (8, 12, 16, 24, 32), end2end=True, reg_max=1)


@pytest.fixture(scope="session")
def large(shared):
    """The teacher's model: 32, 48 and 64 channels go into the head."""
    return _convolutions(shared / "large.yaml", (16, 24, 32, 48, 64))


def _convolutions(path, widths, **head):
    backbone = [[-1, 1, "Conv", [width, 3, 2]] for width in widths]
    YAML.save(path, {"nc": 80, **head, "backbone": backbone, "head": [[[2, 3, 4], 1, "Detect", ["nc"]]]})
    return path


@pytest.fixture(scope="session")
def teacher(shared, scenes, large):
    """A teacher, trained through the plain door until it has learned something of its scenes."""
    easy = {"warmup_epochs": 0, "mosaic": 0, "scale": 0, "translate": 0, "fliplr": 0, "hsv_v": 0}
    fast = {"epochs": 60, "lr0": 0.02, "val": False, "save": False}
    assert train(shared, name="teacher", data=scenes, model=large, **easy, **fast) == 0
    return shared / "teacher" / "weights" / "best.pt"


@pytest.fixture(scope="session")
def amplifier(distilled):
    """The amplifier that was kept beside the teacher."""
    return Path(next(line for line in distilled.log if "kept as " in line).rpartition("kept as ")[2])


@pytest.fixture(scope="session")
def distilled(shared, scenes, teacher, student):
    """A student's run of 3 epochs, with its first stage; what was seen of it from the outside.

    run, best: its folder and checkpoint;  log, progress: what was logged, and printed beside;  teacher_before: digest
    of the teacher's file;  adapters: at the start;  saved: of last.pt after every epoch the packages, the size and
    the adapters.
    """
    seen = SimpleNamespace(run=shared / "distilled", teacher_before=digest(teacher), saved=[], adapters=None)
    seen.best = seen.run / "weights" / "best.pt"
    settings = {"name": "distilled", "data": scenes, "model": student, "epochs": 3, "teacher": teacher}
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, listening() as seen.log, contextlib.redirect_stdout(printed):
        hang_in(patch, "on_train_start", lambda trainer: _note_start(seen, trainer))
        hang_in(patch, "on_model_save", lambda trainer: _note_checkpoint(seen, trainer))
        assert train(shared, amplifier_epochs=2, **settings) == 0
    seen.progress = printed.getvalue()
    return seen


def _note_start(seen, trainer):
    if isinstance(trainer.model, DS2D2Model):
        seen.adapters = weights(trainer.model.projector)


def _note_checkpoint(seen, trainer):
    if isinstance(trainer.model, DS2D2Model):
        last = trainer.last
        seen.saved.append((packages(last), last.stat().st_size, weights(trainer.model.projector)))
