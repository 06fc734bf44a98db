"""Checkpoints that would run something: refused at every door in one line, and nothing is run."""

import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from ultralytics import YOLO
from ultralytics.data import dataset
from ultralytics.data.utils import save_dataset_cache_file
from ultralytics.nn.modules import Detect
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils import IterableSimpleNamespace

from ds2d2_yolo.engine.checkpoints import strip
from ds2d2_yolo.errors import UserError
from ds2d2_yolo.report import runtimes
from ds2d2_yolo.restricted import Refusal, trusted
from tests.helpers.hostile import KINDS, Call, good, newer_call, touch, zipped
from tests.test_architecture import FILES, imported, module_of

DOORS = (
    *("train model", "train teacher", "train amplifier", "train pretrained", "train distill_model", "train resume"),
    *("train backbone_weights", "val model", "val teacher", "val explain model", "val explain teacher"),
    *("val explain amplifier", "export"),
)
LOADERS = {"load_checkpoint", "torch_safe_load", "YOLO", "AutoBackend", "DetectionTrainer", "DetectionValidator"}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Writes a checkpoint of a kind into a folder of its own; returns it and the canary."""

    def write(name):
        folder = tmp_path_factory.mktemp("hostile")
        KINDS[name].write(folder / "hostile.pt", folder / "canary")
        return folder / "hostile.pt", folder / "canary"

    return write


def assert_refused(name, file, canary, code, line):
    assert code == 2 and str(file) in line and KINDS[name].said in line
    assert "only if you know where the file comes from: trust=True" in line
    assert not canary.exists()


def test_every_door_is_tried(doors):
    assert set(DOORS) == set(doors)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_refused(name, hostile, enter):
    file, canary = hostile(name)
    assert_refused(name, file, canary, *enter("export", file))


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", ["in ema", "constructor that loads"])
def test_every_door_refuses(door, name, hostile, enter, tmp_path):
    file, canary = hostile(name)
    assert_refused(name, file, canary, *enter(door, file))
    assert not list(tmp_path.rglob("*.pt"))


@pytest.mark.parametrize("other", ["hostile.PT", "hostile.pt?1", "HOSTILE.Pt?a=b"])
@pytest.mark.parametrize("name", ["in ema", "constructor that loads"])
def test_names_that_ultralytics_takes_for_a_checkpoints(other, name, hostile):
    file, canary = hostile(name)
    file = file.rename(file.with_name(other))
    for door in (load_checkpoint, runtimes.load):
        with pytest.raises(Refusal):
            door(str(file))
    with suppress(UserError):
        YOLO(str(file))  # takes some for exported models, and opens them later
    assert not canary.exists()


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.runs])
def test_the_kinds_run_where_they_are_trusted(name, hostile):
    file, canary = hostile(name)
    with trusted(), suppress(Exception):  # most are no checkpoint besides
        load_checkpoint(file)
    assert canary.exists()


@pytest.mark.parametrize("door", ["train teacher", "train amplifier", "train model", "val model", "export"])
def test_trust_lifts_it_for_one_run(door, hostile, enter):
    file, canary = hostile("os.system")
    with suppress(Exception):  # its model is none, which is found later
        enter(door, file, "trust=True")
    assert canary.exists()
    canary.unlink()
    assert enter(door, file)[0] == 2 and not canary.exists()


@pytest.mark.parametrize("door", ["train teacher", "val model", "export"])
def test_trust_is_true_or_false(door, detector, enter):
    code, line = enter(door, detector, "trust=perhaps")
    assert code == 2 and "trust=perhaps is neither True nor False" in line


def test_what_checkpoints_hold_besides_tensors_passes(tmp_path):
    """Numbers of NumPy, paths, settings, sets and a module's method, as those of older releases of Ultralytics do."""
    content = good()
    content |= {"best_fitness": np.float64(0.5), "train_args": {"save_dir": Path("runs"), "classes": {1, 2}}}
    content["model"].args = IterableSimpleNamespace(imgsz=64, device=torch.device("cpu"), shape=torch.Size([2]))
    content["model"].model[-1].forward = content["model"].model[-1].forward_end2end = Detect.forward
    content["optimizer"] = torch.optim.SGD(content["model"].parameters(), momentum=0.9).state_dict()
    torch.save(content, tmp_path / "old.pt")
    model, checkpoint = load_checkpoint(tmp_path / "old.pt")
    assert checkpoint["best_fitness"] == 0.5 and checkpoint["train_args"]["save_dir"] == Path("runs")
    assert model.model[-1].forward is Detect.forward


def test_no_file_can_ask_for_trust(hostile, enter, tmp_path):
    file, canary = hostile("in ema")
    (tmp_path / "mine.yaml").write_text("trust: true\n")
    code, line = enter("export", file, f"cfg={tmp_path / 'mine.yaml'}")
    assert code == 2 and "mine.yaml' says trust=True, which no file can" in line
    code, line = enter("export", file, f"cfg={tmp_path / 'mine.yaml'}", "trust=False")
    assert_refused("in ema", file, canary, code, line)


def test_no_checkpoint_can_ask_for_trust(hostile, enter, tmp_path, scenes, layout):
    """One with nothing in it names a teacher that has, and says that it is to be trusted."""
    file, canary = hostile("in ema")
    run = {"data": str(scenes), "model": str(layout), "teacher": str(file), "epochs": 9, "imgsz": 64, "device": "cpu"}
    content = good()
    content |= {"optimizer": {}, "epoch": 0, "train_args": {**run, "task": "detect", "trust": True}}
    content["train_args"] |= {"save_dir": str(tmp_path / "runs" / "old"), "workers": 0, "batch": 2}
    torch.save(content, tmp_path / "last.pt")
    assert_refused("in ema", file, canary, *enter("train resume", tmp_path / "last.pt"))


@pytest.mark.parametrize("name", ["in optimizer", "newer protocol, dotted"])
def test_a_best_checkpoint_from_elsewhere_is_not_stripped(name, hostile):
    """It may lie beside the last.pt that is resumed; Ultralytics reads what it strips unrestricted."""
    file, canary = hostile(name)
    with pytest.raises(Refusal, match=KINDS[name].said):
        strip(file)
    assert not canary.exists()


def test_what_cannot_be_read_restricted_is_not_stripped(tmp_path):
    """A familiar function may do harm as well, and a newer protocol is looked through by names alone."""
    file, canary = tmp_path / "best.pt", tmp_path / "canary"
    zipped(file, newer_call("torch._C", "PyTorchFileWriter", canary))  # makes a file
    with pytest.raises(UserError):
        strip(file)
    assert not canary.exists()
    with trusted(), suppress(Exception):
        load_checkpoint(file)
    assert canary.exists()


def test_label_caches_are_read_and_run_nothing(tmp_path):
    labels = [{"im_file": "a.jpg", "shape": (64, 48), "cls": np.zeros((2, 1), np.float32), "segments": [], "n": None}]
    content = {"labels": labels, "hash": "x", "results": (1, 0, 0, 0, np.int64(1)), "msgs": ["said"]}
    save_dataset_cache_file("", tmp_path / "good.cache", content, "1")
    read = dataset.load_dataset_cache_file(tmp_path / "good.cache")
    assert read["results"] == (1, 0, 0, 0, 1) and read["msgs"] == ["said"]
    assert np.array_equal(read["labels"][0]["cls"], np.zeros((2, 1)))
    for canary, payload in (("one", {}), ("two", content)):
        with open(tmp_path / "hostile.cache", "wb") as file:
            np.save(file, {**payload, "more": Call(os.system, touch(tmp_path / canary))}, allow_pickle=True)
        with pytest.raises(Exception, match=r"posix\.system has no place in a label cache"):
            dataset.load_dataset_cache_file(tmp_path / "hostile.cache")
        assert not (tmp_path / canary).exists()


def test_a_hostile_label_cache_is_made_anew(enter, detector, scenes, tmp_path):
    cache, canary = scenes.parent / "labels" / "val.cache", tmp_path / "canary"
    with open(cache, "wb") as file:
        np.save(file, {"labels": Call(os.system, touch(canary))}, allow_pickle=True)
    before = cache.read_bytes()
    assert enter("val model", detector) == (0, "")
    assert cache.read_bytes() != before and not canary.exists()


def _reaches_the_switch(module, seen):
    """Whether importing a module of this package imports ds2d2_yolo.restricted."""
    if module == "ds2d2_yolo.restricted":
        return True
    if module in seen or module not in SOURCES:
        return False
    seen.add(module)
    names = list(imported(SOURCES[module], module))
    return any(_reaches_the_switch(one, seen) for name in names for one in (name, name.rpartition(".")[0]))


SOURCES = {module_of(path)[0]: path.read_text(encoding="utf-8") for path in FILES}
LOADING = [
    module
    for module, source in SOURCES.items()
    if any(n.startswith("ultralytics") and n.rpartition(".")[2] in LOADERS for n in imported(source, module))
]


@pytest.mark.parametrize("module", LOADING)
def test_whatever_loads_checkpoints_imports_the_switch(module):
    assert _reaches_the_switch(module, set())


def test_processes_that_are_started_inherit_the_switch():
    assert os.environ["ULTRALYTICS_SAFE_LOAD"] == "true"
