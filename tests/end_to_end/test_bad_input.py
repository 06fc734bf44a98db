"""What users get wrong beyond a single setting or file: one clear line, exit code 2, and nothing left behind."""

import shutil
from copy import deepcopy

import pytest
import torch
from ultralytics import YOLO
from ultralytics.utils import YAML

from ds2d2_yolo import cli
from ds2d2_yolo.engine.train import train as train_from_python
from ds2d2_yolo.errors import UserError
from tests.helpers.training import listening, one_error, rows, train

pytestmark = pytest.mark.slow


@pytest.fixture
def refused(tmp_path, scenes, small, teacher, capsys):
    """Trains under settings that are to be refused, in place of good ones; returns the line on stderr."""

    def run(**settings):
        good = {"data": scenes, "model": small, "teacher": teacher, "epochs": 1, "amplifier_epochs": 1}
        capsys.readouterr()
        assert train(tmp_path / "runs", name="run", **{**good, **settings}) == 2
        assert not (tmp_path / "runs").exists()
        return one_error(capsys)

    return run


# ---- data


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda names: {**names, 1: "submarine"}, "only the data has submarine; only the teacher has"),
        (lambda names: {**names, len(names): "submarine"}, "only the data has submarine; train"),
        (lambda names: {i: names[len(names) - 1 - i] for i in names}, "same classes in another order ("),
    ],
)
def test_classes_that_differ(refused, tmp_path, scenes, change, said):
    data = YAML.load(scenes)
    YAML.save(tmp_path / "mine.yaml", {**data, "path": str(scenes.parent), "names": change(data["names"])})
    assert said in refused(data=tmp_path / "mine.yaml")


def test_broken_files_among_good_ones_are_named_and_skipped(tmp_path, scenes, teacher, amplifier, small):
    root = tmp_path / "data"
    shutil.copytree(scenes.parent, root, ignore=shutil.ignore_patterns("*.cache"))
    images, labels = root / "images" / "train", root / "labels" / "train"
    (images / "train_0002.jpg").write_bytes(b"no image")
    (images / "train_0003.jpg").write_bytes((images / "train_0003.jpg").read_bytes()[:100])
    (labels / "train_0004.txt").write_text("0 0.5 0.5\n")
    (labels / "train_0005.txt").write_text("0 5 5 2 2\n")
    (labels / "train_0006.txt").write_text("77 0.5 0.5 0.1 0.1\n")
    (labels / "train_0007.txt").write_text("ship 0.5 0.5 0.1 0.1\n")
    given = {"data": root / "data.yaml", "model": small, "teacher": teacher, "amplifier": amplifier, "epochs": 1}
    with listening() as log:
        assert train(tmp_path, name="run", batch=2, **given) == 0
    for number in range(2, 8):
        assert [line for line in log if f"train_000{number}" in line and "ignoring corrupt image/label" in line]
    assert len(rows(tmp_path / "run")) == 1


# ---- teacher, amplifier, model


def test_teachers_that_are_none(refused, tmp_path, scenes):
    assert "there is no such file" in refused(teacher=tmp_path / "nowhere.pt")
    assert "does not exist" in refused(teacher=tmp_path / "nowhere")
    (tmp_path / "text.pt").write_text("no checkpoint\n")
    assert "text.pt' cannot be loaded" in refused(teacher=tmp_path / "text.pt")
    (tmp_path / "empty.pt").touch()
    assert "empty.pt' cannot be loaded" in refused(teacher=tmp_path / "empty.pt")
    assert "is no .pt checkpoint" in refused(teacher=scenes)
    torch.save({"weights": torch.zeros(1)}, tmp_path / "foreign.pt")
    assert "foreign.pt' cannot be loaded" in refused(teacher=tmp_path / "foreign.pt")


@pytest.mark.parametrize(
    ("family", "task"), [("yolo11n-cls", "classify"), ("yolo11n-seg", "segment"), ("yolo11n-obb", "obb")]
)
def test_teachers_of_another_task(refused, tmp_path, family, task):
    torch.save({"model": YOLO(f"{family}.yaml").model, "epoch": -1}, tmp_path / "other.pt")
    said = f"other.pt' is made for the task '{task}'; DS2D2 takes detectors of upright boxes"
    assert said in refused(teacher=tmp_path / "other.pt")


def test_models_of_another_task(refused):
    assert "is made for the task 'classify'" in refused(model="yolo11n-cls.yaml")
    assert "is made for the task 'segment'" in refused(model="yolo11n-seg.yaml", teacher=None)


def test_models_that_are_none(refused, tmp_path):
    assert "there is no such file" in refused(model=tmp_path / "nowhere.pt")
    assert "nowhere.yaml" in refused(model=tmp_path / "nowhere.yaml")
    for text, said in (("- [-1, 1, Nope, [64]]", "'Nope'"), ("- Conv", "row 1 under 'backbone:'"), ("", "no layers")):
        (tmp_path / "broken.yaml").write_text(f"backbone:\n{text}\nhead:\n- [[0], 1, Detect, [nc]]\n")
        line = refused(model=tmp_path / "broken.yaml")
        assert "broken.yaml" in line and said in line


def test_a_pair_that_cannot_meet_is_refused_before_the_first_stage(refused, tmp_path, small):
    deep = {"nc": 80, "backbone": [[-1, 1, "Conv", [8, 3, 2]]] * 6, "head": [[[5], 1, "Detect", ["nc"]]]}
    YAML.save(tmp_path / "deep.yaml", deep)
    line = refused(model=tmp_path / "deep.yaml")
    assert "student (strides [64]) and teacher (strides [8, 16, 32]) have no stride in common" in line
    line = refused(adapter="never")
    assert "adapter=never, but at stride 8 the student has 16 channels and the teacher 32" in line


def test_amplifiers_that_are_none(refused, tmp_path, teacher, amplifier):
    assert "there is no such file" in refused(amplifier=tmp_path / "nowhere.pt")
    (tmp_path / "text.pt").write_text("no checkpoint\n")
    assert "text.pt' cannot be read; use amplifier=auto" in refused(amplifier=tmp_path / "text.pt")
    assert "is no DS2D2 amplifier" in refused(amplifier=teacher)
    torch.save({"weights": torch.zeros(1)}, tmp_path / "foreign.pt")
    assert "is no DS2D2 amplifier" in refused(amplifier=tmp_path / "foreign.pt")


def test_amplifiers_of_another_teacher(refused, tmp_path, teacher, amplifier):
    checkpoint = torch.load(teacher, weights_only=False)
    other = deepcopy(checkpoint)
    other["model"].model[0].conv.weight.data += 0.5
    torch.save(other, tmp_path / "moved.pt")
    assert "was trained for another teacher" in refused(teacher=tmp_path / "moved.pt", amplifier=amplifier)
    assert "wavelet=haar" in refused(teacher=teacher, amplifier=amplifier, wavelet="db2")
    other = refused(teacher=teacher, amplifier=amplifier, high_frequency="residual")
    assert "was trained with wavelet=haar wavelet_padding=zero high_frequency=bands; use these" in other
    data = torch.load(amplifier)
    data["head"].popitem()
    torch.save(data, tmp_path / "half.pt")
    assert "does not fit this teacher's head" in refused(amplifier=tmp_path / "half.pt")


# ---- resume, val, export


def test_resume(tmp_path, capsys):
    for name, text in (("nowhere", None), ("text", "no checkpoint\n"), ("empty", "")):
        last = tmp_path / f"{name}.pt"
        if text is not None:
            last.write_text(text)
        assert cli.train([f"resume={last}"]) == 2
        assert str(last) in one_error(capsys)
    with pytest.raises(UserError, match=r"last.pt is no file; name the last.pt of the interrupted run$"):
        train_from_python({"resume": tmp_path / "student/weights/last.pt"})


@pytest.mark.parametrize("command", [cli.val, cli.export])
def test_val_and_export(command, tmp_path, scenes, capsys):
    (tmp_path / "text.pt").write_text("no checkpoint\n")
    torch.save({"model": YOLO("yolo11n-cls.yaml").model, "epoch": -1}, tmp_path / "classifier.pt")
    before = sorted(tmp_path.iterdir())
    data = [f"data={scenes}"]
    assert command([f"model={tmp_path / 'nowhere.pt'}", *data]) == 2
    assert "there is no such file" in one_error(capsys)
    assert command([f"model={tmp_path / 'nowhere.onnx'}", *data]) == 2
    assert "nowhere.onnx" in one_error(capsys)
    for name in ("text.pt", "classifier.pt"):
        assert command([f"model={tmp_path / name}", *data]) == 2
        assert name in one_error(capsys)
    assert command([f"model={tmp_path / 'text.pt'}", *data, "imgs=96"]) == 2
    assert "did you mean imgsz" in one_error(capsys)
    assert sorted(tmp_path.iterdir()) == before


def test_val_needs_data_that_fit(tmp_path, scenes, teacher, capsys):
    assert cli.val([f"model={teacher}"]) == 2
    assert "data=" in one_error(capsys)
    assert cli.val([f"model={teacher}", f"data={tmp_path / 'nowhere.yaml'}"]) == 2
    assert "nowhere.yaml" in one_error(capsys)
    data = {**YAML.load(scenes), "path": str(scenes.parent)}
    names = data["names"]
    for changed in ({**names, len(names): "submarine"}, {**names, 0: names[1], 1: names[0]}):
        YAML.save(tmp_path / "mine.yaml", {**data, "names": changed})
        assert cli.val([f"model={teacher}", f"data={tmp_path / 'mine.yaml'}", "imgsz=96", "workers=0"]) == 2
        line = one_error(capsys)
        assert "submarine" in line or f"'{names[1]}' is number 1 in the model and 0 in the data" in line
