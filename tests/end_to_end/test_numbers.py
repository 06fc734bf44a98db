"""NaN and infinity in a term, a gradient, a batch: the step is left out, said so, and nothing else changes."""

import math

import pytest
import torch
from torch import nn

from ds2d2_yolo.distill.model import DS2D2Model
from ds2d2_yolo.engine.trainer import DS2D2Trainer
from tests.helpers.training import hang_in, listening, one_error, rows, train

pytestmark = pytest.mark.slow


@pytest.fixture
def trained(tmp_path, scenes, teacher, amplifier, small, monkeypatch):
    """Trains for 3 epochs of 2 steps; returns the exit code, the log and the model as it ended."""

    def run(distilled=True, **settings):
        models = []
        hang_in(monkeypatch, "on_train_start", lambda trainer: models.append(trainer.model))
        taught = {"teacher": teacher, "amplifier": amplifier} if distilled else {}
        with listening() as log:
            code = train(
                tmp_path, name="run", data=scenes, model=small, epochs=3, **{"val": False, **taught, **settings}
            )
        return code, log, models[0]

    return run


def assert_sound(log, model, folder, left_out):
    assert [line.partition("left out ")[2] for line in log if "left out" in line] == left_out
    assert all(value.isfinite().all() for value in model.state_dict().values())
    table = rows(folder / "run")
    assert [row["epoch"] for row in table] == [1, 2, 3]
    assert all(math.isfinite(value) for row in table for value in row.values())
    assert not any("recovering" in line for line in log)


@pytest.mark.parametrize(("bad", "when"), [(math.nan, 1), (math.inf, 4)])
def test_in_a_term(trained, tmp_path, monkeypatch, bad, when):
    calls, distil = [], DS2D2Model._distil

    def poison(model, *args):
        calls.append(model)
        total, found = distil(model, *args)
        if len(calls) != when:
            return total, found
        return total if total is None else total * bad, {**found, "im_full": found["im_full"] * bad}

    monkeypatch.setattr(DS2D2Model, "_distil", poison)
    code, log, model = trained()
    assert code == 0 and len(calls) == 6
    assert_sound(log, model, tmp_path, ["1 of 2 steps that were not finite (im_full)"])


@pytest.mark.parametrize(("bad", "taught"), [(math.nan, True), (math.inf, False)])
def test_in_a_gradient(trained, tmp_path, monkeypatch, bad, taught):
    seen = []

    def poison(gradient):
        seen.append(gradient)
        return gradient * bad if len(seen) == 3 else gradient

    hook = lambda trainer: next(trainer.model.parameters()).register_hook(poison)  # noqa: E731
    hang_in(monkeypatch, "on_train_start", hook)
    code, log, model = trained(taught)
    assert code == 0
    assert_sound(log, model, tmp_path, ["1 of 2 steps that were not finite"])


@pytest.mark.parametrize(("bad", "taught"), [(math.nan, True), (math.inf, False)])
def test_in_a_batch(trained, tmp_path, monkeypatch, bad, taught):
    """Also BatchNorm's running statistics are as if the batch had never been."""
    seen, prepare = [], DS2D2Trainer.preprocess_batch

    def poison(trainer, batch):
        batch = prepare(trainer, batch)
        seen.append(trainer)
        if len(seen) == 3:
            batch["img"][0, 0, 5, 5] = bad
        return batch

    monkeypatch.setattr(DS2D2Trainer, "preprocess_batch", poison)
    code, log, model = trained(taught)
    assert code == 0
    (line,) = [line.partition("left out ")[2] for line in log if "left out" in line]
    assert line.startswith("1 of 2 steps that were not finite (")
    assert_sound(log, model, tmp_path, [line])
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(m.running_var.max() < 1e3 for m in norms)


@pytest.mark.parametrize("lasting", [False, True])
def test_in_an_epoch_of_one_step(trained, tmp_path, monkeypatch, capsys, lasting):
    """A set of few images: one bad batch ends no run, and a lasting fault does."""
    seen, prepare = [], DS2D2Trainer.preprocess_batch

    def poison(trainer, batch):
        batch = prepare(trainer, batch)
        seen.append(trainer)
        if len(seen) == 2 or (lasting and len(seen) > 2):
            batch["img"] *= math.nan
        return batch

    monkeypatch.setattr(DS2D2Trainer, "preprocess_batch", poison)
    capsys.readouterr()
    code, log, model = trained(False, batch=8, nbs=8)
    (line,) = [line.partition("left out ")[2] for line in log if "left out" in line]
    assert line.startswith("1 of 1 steps that were not finite (") and len(seen) == 3
    if lasting:
        assert code == 2 and "no step of epoch 3 was finite" in one_error(capsys)
    else:
        assert code == 0
        assert_sound(log, model, tmp_path, [line])


def test_no_step_at_all(trained, tmp_path, monkeypatch, capsys):
    calls, distil = [], DS2D2Model._distil

    def poison(model, *args):
        calls.append(model)
        total, found = distil(model, *args)
        bad = math.nan if len(calls) > 2 else 1.0
        return total if total is None else total * bad, {**found, "ex_low": found["ex_low"] * bad}

    monkeypatch.setattr(DS2D2Model, "_distil", poison)
    capsys.readouterr()
    code, _, model = trained()
    assert code == 2
    line = one_error(capsys)
    assert "no step of epoch 2 was finite (ex_low): lower lr0, or set amp=False; " in line
    assert line.endswith(f"the weights of epoch 1 are in {tmp_path / 'run/weights/last.pt'}")
    assert torch.load(tmp_path / "run/weights/last.pt", weights_only=False)["epoch"] == 0
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_no_step_of_the_first_epoch(trained, tmp_path, monkeypatch, capsys):
    prepare = DS2D2Trainer.preprocess_batch
    poison = lambda trainer, batch: {**(made := prepare(trainer, batch)), "img": made["img"] * math.nan}  # noqa: E731
    monkeypatch.setattr(DS2D2Trainer, "preprocess_batch", poison)
    capsys.readouterr()
    assert trained(False)[0] == 2
    assert one_error(capsys).endswith("nothing was saved")
    assert not (tmp_path / "run").exists()


def test_one_image_a_batch(trained, tmp_path):
    code, log, model = trained(batch=1, nbs=1)
    assert code == 0
    assert_sound(log, model, tmp_path, [])
