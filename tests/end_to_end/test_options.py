"""Options of Ultralytics and of DS2D2 in real trainings, several in one run."""

import math
import shutil
from itertools import pairwise
from unittest.mock import Mock

import cv2
import pytest
import torch
from ultralytics import YOLO
from ultralytics.nn.distill_model import DistillationModel
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils import YAML

from ds2d2_yolo import DS2D2Trainer
from ds2d2_yolo.distill.model import DS2D2Model
from ds2d2_yolo.engine import amplifier_trainer
from ds2d2_yolo.errors import UserError
from ds2d2_yolo.method.wavelet import high_frequency_map
from ds2d2_yolo.restricted import load_tensors
from tests.helpers.training import SHARES, TERMS, hang_in, listening, rows, train, weights

pytestmark = pytest.mark.slow


@pytest.fixture
def taught(tmp_path, scenes, teacher, amplifier, small):
    """Trains the small student for 2 epochs under further settings; returns its results, which must be in order."""

    def run(**settings):
        common = {"data": scenes, "model": small, "teacher": teacher, "amplifier": amplifier, "epochs": 2}
        assert train(tmp_path, name="run", **{**common, "val": False, **settings}) == 0
        return in_order(tmp_path / "run")

    return run


def in_order(run):
    table = rows(run)
    for row in table:
        assert all(math.isfinite(value) for value in row.values()), row
        assert all(row[f"train/{name}"] > 0 for name in TERMS), row
        assert sum(row[share] for share in SHARES) == pytest.approx(1, abs=1e-4)
    return table


@pytest.fixture
def steps(monkeypatch):
    """Of every step of a student: size of the image, sizes of the maps, number of objects, the model."""
    seen, distil = [], DS2D2Model._distil

    def note(model, neck, teacher, step):
        maps = [tuple(neck[level.student].shape[2:]) for level in model.levels]
        assert maps == [tuple(m.shape[2:]) for m in teacher]
        seen.append((tuple(step.batch["img"].shape[1:]), maps, len(step.batch["bboxes"]), model))
        return distil(model, neck, teacher, step)

    monkeypatch.setattr(DS2D2Model, "_distil", note)
    return seen


@pytest.fixture
def scenes_like(scenes, tmp_path):
    """Writes a data set whose files a function makes from those of the scenes: (image, label, folder) -> None."""

    def write(make, **yaml):
        root = tmp_path / "data"
        for image in sorted(scenes.parent.glob("images/*/*.jpg")):
            label = scenes.parent / "labels" / image.parent.name / f"{image.stem}.txt"
            for kind in ("images", "labels"):
                (root / kind / image.parent.name).mkdir(parents=True, exist_ok=True)
            make(image, label, root)
        YAML.save(root / "data.yaml", {**YAML.load(scenes), **yaml})
        return root / "data.yaml"

    return write


def beside(path, root):
    """The place of a scene's image or label in another data set."""
    return root.joinpath(*path.parts[-3:])


def test_multi_scale_and_a_longer_wavelet(taught, steps, monkeypatch):
    passed = Mock(wraps=high_frequency_map)
    monkeypatch.setattr(amplifier_trainer, "high_frequency_map", passed)
    own = {"wavelet": "sym4", "wavelet_padding": "symmetric", "disw": False, "adapter": "always", "normalize": "none"}
    own |= {"high_frequency": "residual"}
    taught(multi_scale=0.5, align=False, epochs=4, amplifier="auto", amplifier_epochs=1, **own)
    widths = {maps[-1][1] for _, maps, *_ in steps}
    assert len(widths) > 1 and any(width % 2 for width in widths) and any(width % 2 == 0 for width in widths)
    assert {call.args[1:] for call in passed.call_args_list} == {
        ("sym4", "symmetric", "residual")
    }  # what it learned from
    assert load_tensors(steps[0][-1].settings.amplifier)["high_frequency"] == "residual"
    adapters = steps[0][-1].projector
    assert [type(adapter) for adapter in adapters] == [torch.nn.Conv2d] * 3


def test_oblong_images_in_rectangular_batches(taught, steps, scenes_like):
    def squeeze(image, label, root):
        cv2.imwrite(str(beside(image, root)), cv2.resize(cv2.imread(str(image)), (96, 60)))
        shutil.copy(label, beside(label, root))

    taught(
        data=scenes_like(squeeze),
        rect=True,
        cache="ram",
        balance="fixed",
        normalize="teacher",
        ex_low=0.01,
        distill_final=1,
    )
    assert {size for size, *_ in steps} == {(3, 64, 96)}
    assert steps[0][1] == [(8, 12), (4, 6), (2, 3)]
    assert steps[0][-1].balance.scales == {} and steps[0][-1].balance.multiplier("ex_low") == pytest.approx(0.01)


def test_accumulated_gradients_and_frozen_layers(taught, monkeypatch):
    start, end = {}, {}
    hang_in(monkeypatch, "on_train_start", lambda trainer: start.update(weights(trainer.model)))
    hang_in(
        monkeypatch, "on_train_end", lambda trainer: end.update(weights(trainer.model), updates=trainer.ema.updates)
    )
    taught(nbs=16, warmup_epochs=0, epochs=4, freeze=2)
    assert end.pop("updates") == 2  # 4 epochs of 2 batches, 4 batches a step
    moved = {name for name in start if not torch.equal(start[name], end[name])}
    frozen = ("student_model.model.0.", "student_model.model.1.")
    assert not [name for name in moved if name.startswith(frozen)]
    assert {name for name in start if name.startswith(("projector.", "student_model.model.2.conv"))} <= moved


@pytest.mark.parametrize("channels", [1, 4])
def test_gray_and_multispectral_images(channels, steps, tmp_path, scenes_like, large, small):
    def write(image, label, root):
        planes = [*cv2.split(cv2.imread(str(image))), cv2.imread(str(image), cv2.IMREAD_GRAYSCALE)]
        target = beside(image, root)
        if channels == 1:
            cv2.imwrite(str(target), planes[-1])
        else:
            cv2.imwritemulti(str(target.with_suffix(".tiff")), planes)
        shutil.copy(label, beside(label, root))

    common = {"data": scenes_like(write, channels=channels), "epochs": 1, "val": False}
    assert train(tmp_path, name="teacher", model=large, **common) == 0
    best = tmp_path / "teacher" / "weights" / "best.pt"
    assert train(tmp_path, name="run", model=small, teacher=best, amplifier_epochs=1, **common) == 0
    assert {size for size, *_ in steps} == {(channels, 96, 96)}
    assert all(row[share] > 0 for row in rows(tmp_path / "run") for share in SHARES)


def test_images_without_objects(taught, steps, scenes_like):
    def empty_most(image, label, root):
        shutil.copy(image, beside(image, root))
        beside(label, root).write_text(label.read_text() if image.stem.endswith(("0", "1")) else "")

    run = {"data": scenes_like(empty_most), "batch": 2, "mosaic": 0, "distill_final": 0.1, "branch": "one2one"}
    table = taught(**run)
    assert max(row[f"train/{name}"] for row in table for name in TERMS) < 100
    assert 0 in {objects for *_, objects, _ in steps} and max(objects for *_, objects, _ in steps) > 0


def test_one_class(taught, steps):
    taught(single_cls=True, amplifier="auto", amplifier_epochs=1)
    assert steps[0][-1].names == {0: "item"} and steps[0][-1].student_model.model[-1].nc == 1


def test_one_to_one_branch_without_adapters(tmp_path, steps, scenes, one_to_one):
    common = {"data": scenes, "model": one_to_one, "epochs": 1, "val": False}
    assert train(tmp_path, name="teacher", **common) == 0
    own = {"branch": "one2one", "adapter": "never", "amplifier_epochs": 1}
    assert train(tmp_path, name="run", teacher=tmp_path / "teacher" / "weights" / "best.pt", **common, **own) == 0
    model = steps[0][-1]
    assert not list(model.projector.parameters())
    asked = model._frozen.full
    assert asked.box is asked.head.one2one_cv2 and asked.cls is asked.head.one2one_cv3


def test_a_student_that_starts_from_its_teacher(taught, teacher, tmp_path, monkeypatch):
    seen = {}
    hang_in(monkeypatch, "on_train_start", lambda trainer: seen.update(weights(trainer.model.student_model)))
    with listening() as lines:
        taught(inherit=True)
    assert any("100% of the student's parameters start from the teacher's" in line for line in lines)
    theirs = load_checkpoint(teacher)[0].state_dict()["model.0.conv.weight"].float()
    assert torch.equal(seen["model.0.conv.weight"], theirs[::2])


def test_weights_that_were_loaded_are_not_thrown_away(scenes, teacher, amplifier, small, tmp_path):
    given = {"data": str(scenes), "teacher": str(teacher), "amplifier": str(amplifier), "project": str(tmp_path)}
    with pytest.raises(UserError, match="the model has loaded weights, and inherit=True takes the teacher's"):
        YOLO(small, task="detect").load(teacher).train(trainer=DS2D2Trainer, inherit=True, epochs=1, imgsz=96, **given)
    assert not list(tmp_path.iterdir())


def test_early_stopping(taught, monkeypatch):
    """Of a student that is best after its second epoch: what a few steps really teach it is anybody's guess."""
    validate = DS2D2Trainer.validate

    def falling(trainer):
        metrics, _ = validate(trainer)
        return metrics, [0.1, 0.4, 0.3, 0.2, 0.1][trainer.epoch]

    monkeypatch.setattr(DS2D2Trainer, "validate", falling)
    table = taught(epochs=5, patience=2, val=True)
    assert [row["epoch"] for row in table] == [1, 2, 3, 4]
    assert all("metrics/mAP50(B)" in row for row in table)


def test_distillation_of_ultralytics_goes_through_the_same_door(tmp_path, scenes, teacher, small, monkeypatch):
    kinds = set()
    hang_in(monkeypatch, "on_train_start", lambda trainer: kinds.add(type(trainer.model)))
    assert train(tmp_path, name="run", data=scenes, model=small, distill_model=teacher, epochs=2, val=False) == 0
    assert kinds == {DistillationModel}
    for row in rows(tmp_path / "run"):
        assert row["train/dis_loss"] > 0 and not any(name.startswith("share/") for name in row)


def test_settings_from_a_file(taught, steps, tmp_path):
    YAML.save(tmp_path / "mine.yaml", {"epochs": 1, "im_full": 0.25, "im_high": 0.75, "wavelet": "bior2.2"})
    given = {"im_high": 0.5, "amplifier": "auto", "amplifier_epochs": 1}
    assert len(taught(cfg=tmp_path / "mine.yaml", **given)) == 2  # what is given beside the file goes first
    weights_of = steps[0][-1].balance.weights
    assert (weights_of["im_full"], weights_of["im_high"], steps[0][-1].settings.wavelet) == (0.25, 0.5, "bior2.2")


def test_weights_rise_and_fall(taught, steps, monkeypatch):
    factors = []
    hang_in(monkeypatch, "on_train_batch_end", lambda trainer: factors.append(trainer.model.balance.factor))
    table = taught(epochs=4, distill_warmup=2, distill_final=0)
    assert len(factors) == 8 and factors[0] == 0
    assert all(one < other for one, other in pairwise(factors[:4])) and factors[5] > factors[6] > factors[7] > 0
    assert table[-1]["share/im_full"] < table[1]["share/im_full"]
