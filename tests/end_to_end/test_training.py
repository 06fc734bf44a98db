"""Teacher, amplifier and student, trained for real: what each leaves behind, and what it must not touch."""

import math
import re

import cv2
import pytest
import torch
from ultralytics import YOLO
from ultralytics.nn.distill_model import DistillationModel
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils import YAML
from ultralytics.utils.plotting import plot_results

from ds2d2_yolo import DS2D2Trainer
from tests.helpers.alone import assert_loads_alone
from tests.helpers.checkpoints import narrow_detector, save_checkpoint
from tests.helpers.training import RECIPE, SHARES, TERMS, digest, hang_in, listening, packages, rows, same, train

pytestmark = pytest.mark.slow


# ---- the teacher, and the first stage


def test_without_a_teacher_it_is_plain_training(teacher, pictures):
    columns = rows(teacher.parents[1])[0]
    assert not [name for name in columns if name.startswith("share/") or name.rpartition("/")[2] in TERMS]
    assert sum(map(len, YOLO(teacher).predict(pictures, conf=0.01, imgsz=96, verbose=False))), "it has learned nothing"
    assert packages(teacher) == {"__builtin__", "collections", "torch", "ultralytics"}


def test_the_first_stage_is_announced_and_measured(distilled):
    text = "\n".join(distilled.log)
    assert text.count("stage 1 of 2, 2 epochs: high-frequency amplifier of") == 1
    assert re.search(r"amplifier on high frequencies alone: AP50 0\.\d{3}, AP50-95 0\.\d{3}; kept as \S+\.pt", text)
    assert text.index("stage 1 of 2") < text.index("kept as") < text.index("stage 2 of 2, 3 epochs: the student")
    assert len(rows(distilled.run.with_name("distilled-amplifier"))) == 2


def test_the_amplifier_lies_beside_the_teacher(distilled, amplifier, teacher):
    assert re.fullmatch(r"best-amplifier-[0-9a-f]{10}\.pt", amplifier.name)
    assert amplifier.stat().st_size < teacher.stat().st_size
    assert packages(amplifier) <= {"__builtin__", "collections", "torch"}


def test_the_first_stage_trains_the_head_alone(distilled, teacher):
    made = load_checkpoint(distilled.run.with_name("distilled-amplifier") / "weights" / "last.pt")[0].model
    given = load_checkpoint(teacher)[0].model
    for one, other in zip(made[:-2], given[:-1], strict=True):
        assert same(one.state_dict(), other.state_dict())
    moved = [k for k, v in made[-1].state_dict().items() if not torch.equal(v, given[-1].state_dict()[k])]
    assert any(name.endswith("conv.weight") for name in moved)


# ---- the student


def test_results_have_the_terms_and_their_shares(distilled):
    table = rows(distilled.run)
    assert [row["epoch"] for row in table] == [1, 2, 3]
    for row in table:
        assert all(math.isfinite(value) for value in row.values())
        assert all(row[f"train/{name}"] > 0 for name in TERMS), row
        assert all(0 < row[share] < 1 for share in SHARES), row
        assert sum(row[share] for share in SHARES) == pytest.approx(1, abs=1e-4)
        assert not {f"val/{name}" for name in TERMS} & row.keys()


def test_progress_names_and_shows_the_terms(distilled):
    header = next(line for line in distilled.log if "ex_low" in line and "Epoch" in line).split()
    assert header[2:-2] == ["box_loss", "cls_loss", "dfl_loss", *TERMS]
    lines = [line.split() for line in re.split(r"[\r\n]", distilled.progress) if "3/3" in line]
    values = dict(zip(header, lines[-1][1 if lines[-1][0] != "3/3" else 0 :], strict=False))
    last = rows(distilled.run)[-1]
    for name in TERMS:
        assert float(values[name]) == pytest.approx(last[f"train/{name}"], rel=1e-2, abs=1e-5)


def test_shares_are_logged_once_an_epoch(distilled):
    assert len([line for line in distilled.log if "share of the gradient at the neck: detection" in line]) == 3


def test_no_checkpoint_holds_teacher_or_amplifier(distilled, tmp_path, scenes, student):
    sizes = []
    with pytest.MonkeyPatch.context() as patch:
        hang_in(patch, "on_model_save", lambda trainer: sizes.append(trainer.last.stat().st_size))
        assert train(tmp_path, name="plain", data=scenes, model=student, epochs=1) == 0
    assert len(distilled.saved) == 3
    for found, size, _ in distilled.saved:
        assert found == {"__builtin__", "collections", "torch", "ultralytics"}
        assert size == pytest.approx(sizes[0], rel=0.05)
    plain = tmp_path / "plain" / "weights" / "best.pt"
    assert distilled.best.stat().st_size == pytest.approx(plain.stat().st_size, rel=0.01)
    keys, expected = (load_checkpoint(path)[0].state_dict().keys() for path in (distilled.best, plain))
    assert keys == expected
    assert packages(distilled.best) == {"__builtin__", "collections", "torch", "ultralytics"}


def test_the_adapters_are_trained(distilled):
    assert [tuple(w.shape) for w in distilled.adapters.values()] == [(32, 16, 1, 1), (48, 32, 1, 1)]  # 64 meet 64
    assert not same(distilled.saved[0][2], distilled.adapters)
    for name, first in distilled.saved[0][2].items():
        assert (distilled.saved[-1][2][name] - first).abs().max() > 1e-4


def test_the_teacher_is_not_touched(distilled, teacher):
    assert digest(teacher) == distilled.teacher_before


def test_the_amplifier_is_reused_and_the_student_comes_out_the_same(distilled, tmp_path, scenes, teacher, student):
    with listening() as log:
        settings = {"name": "again", "data": scenes, "model": student, "epochs": 3, "teacher": teacher}
        assert train(tmp_path, amplifier_epochs=2, **settings) == 0
    assert not any("stage 1 of 2" in line for line in log)
    assert any("high-frequency amplifier" in line and "AP50 0." in line for line in log)
    assert [path.name for path in tmp_path.iterdir()] == ["again"]
    first, second = ([{**row, "time": 0} for row in rows(run)] for run in (distilled.run, tmp_path / "again"))
    assert first == second


def test_from_python_with_an_amplifier_and_pictures(tmp_path, scenes, teacher, amplifier, student, pictures):
    model = YOLO(student)
    own = {"teacher": str(teacher), "amplifier": str(amplifier), "ex_low": 0.3}
    recipe = {**RECIPE, "data": str(scenes), "project": str(tmp_path), "name": "python", "epochs": 2, "plots": True}
    model.train(trainer=DS2D2Trainer, **recipe, **own)
    assert [path.name for path in tmp_path.iterdir()] == ["python"]
    run = tmp_path / "python"
    assert all(row[f"train/{name}"] > 0 for row in rows(run) for name in TERMS)
    # Ultralytics' own picture of the same table lacks the terms
    (tmp_path / "results.csv").write_bytes((run / "results.csv").read_bytes())
    plot_results(file=tmp_path / "results.csv")
    with_terms, without = (cv2.imread(str(folder / "results.png")).shape for folder in (run, tmp_path))
    assert with_terms[0] * with_terms[1] > 1.5 * without[0] * without[1]
    # The model goes on as after any training
    assert model.val(workers=0, plots=False, project=str(tmp_path)).box.map50 >= 0
    assert len(model.predict(pictures[:2], imgsz=96, verbose=False)) == 2


@pytest.mark.parametrize("off", TERMS)
def test_a_term_that_is_off(off, tmp_path, scenes, teacher, amplifier, small):
    given = {"amplifier": amplifier} if off != "im_high" else {"wavelet": "db3"}  # none is kept for this wavelet
    settings = {"data": scenes, "model": small, "teacher": teacher, "epochs": 1, "val": False, off: 0, **given}
    assert train(tmp_path, name="off", **settings) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["off"]
    row = rows(tmp_path / "off")[0]
    assert row[f"train/{off}"] == row[f"share/{off}"] == 0
    assert not {f"val/{name}" for name in TERMS} & row.keys()
    assert all(row[f"train/{name}"] > 0 and row[f"share/{name}"] > 0 for name in TERMS if name != off)


@pytest.mark.parametrize("end_to_end", ["teacher", "student"])
def test_one_has_an_end_to_end_head(end_to_end, tmp_path, scenes, small, narrow26, pictures):
    untrained = narrow_detector("one-to-one" if end_to_end == "teacher" else None, nc=5, imgsz=96)
    untrained.names = YAML.load(scenes)["names"]
    best = save_checkpoint(tmp_path / "teacher.pt", untrained)
    common = {"data": scenes, "epochs": 1, "val": False, "teacher": best, "amplifier_epochs": 1}
    assert train(tmp_path, name="student", model=narrow26 if end_to_end == "student" else small, **common) == 0
    row = rows(tmp_path / "student")[0]
    assert all(math.isfinite(value) for value in row.values())
    assert all(row[share] > 0 for share in SHARES)
    student = YOLO(tmp_path / "student" / "weights" / "best.pt")
    assert (getattr(student.model.model[-1], "one2one_cv2", None) is not None) == (end_to_end == "student")
    assert len(student.predict(pictures[:1], imgsz=96, verbose=False)) == 1


def test_a_student_stands_alone(tmp_path, scenes, teacher, amplifier, pictures, monkeypatch):
    """One that has boxes to show, as it starts where its teacher is; in training, and when that is over."""
    begun = tmp_path / "begun.pt"
    hang_in(monkeypatch, "on_model_save", lambda trainer: begun.write_bytes(trainer.last.read_bytes()))
    settings = {"data": scenes, "model": teacher, "teacher": teacher, "amplifier": amplifier, "adapter": "always"}
    assert train(tmp_path, name="alone", epochs=1, lr0=1e-5, warmup_epochs=0, val=False, **settings) == 0
    assert type(torch.load(begun, weights_only=False)["ema"]) is DistillationModel
    assert_loads_alone(tmp_path / "alone" / "weights" / "best.pt", pictures[:3], begun)
