"""What a run leaves of others, and what another one makes of it: the same folder, the same recipe, the same weights."""

import errno
import re
import shutil

import pytest
import torch
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel, load_checkpoint
from ultralytics.utils import DEFAULT_CFG_DICT, YAML

from ds2d2_yolo import cli
from ds2d2_yolo.datasets import demo
from ds2d2_yolo.engine.checkpoints import AtomicPath
from ds2d2_yolo.engine.trainer import DS2D2Trainer
from ds2d2_yolo.errors import UserError
from tests.helpers.training import RECIPE, digest, hang_in, one_error, part, resume, rows, same, train, weights

FITNESS = [0.1, 0.4, 0.3, 0.2]


@pytest.fixture
def rated(monkeypatch):
    """Every run is at its best after the second epoch."""
    validate = DS2D2Trainer.validate

    def by_the_epoch(trainer):
        metrics, _ = validate(trainer)
        trainer.best_fitness = max(FITNESS[: trainer.epoch + 1])
        return metrics, FITNESS[trainer.epoch]

    monkeypatch.setattr(DS2D2Trainer, "validate", by_the_epoch)


@pytest.fixture
def plain(tmp_path, scenes, small):
    """A run of one epoch, with the name that an amplifier's stage would take."""
    assert train(tmp_path, name="run-amplifier", data=scenes, model=small, epochs=1) == 0
    return tmp_path / "run-amplifier"


def fitness(checkpoint):
    return load_checkpoint(checkpoint)[1]["train_metrics"]["fitness"]


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_the_best_epoch_survives_an_end_between_the_two_checkpoints(
    rated, tmp_path, scenes, small, fault, monkeypatch, capsys
):
    written = []

    def broken(path, data):
        written.append(path.name)
        if written.count("best.pt") == 2:
            raise fault
        return write(path, data)

    write = AtomicPath.write_bytes
    monkeypatch.setattr(AtomicPath, "write_bytes", broken)
    assert train(tmp_path, name="run", data=scenes, model=small, epochs=4) in (2, 130)
    assert f"resume={tmp_path}/run/weights/last.pt" in capsys.readouterr().err
    monkeypatch.setattr(AtomicPath, "write_bytes", write)
    weights = tmp_path / "run/weights"
    assert (fitness(weights / "best.pt"), fitness(weights / "last.pt")) == (0.1, 0.4)
    assert resume(weights / "last.pt") == 0
    assert (fitness(weights / "best.pt"), fitness(weights / "last.pt")) == (0.4, 0.2)


def test_an_earlier_checkpoint_does_not_replace_a_better_one(rated, tmp_path, scenes, small, monkeypatch):
    def stop(trainer):
        if trainer.epoch == 1:
            raise KeyboardInterrupt

    hang_in(monkeypatch, "on_model_save", stop)
    assert train(tmp_path, name="run", data=scenes, model=small, epochs=4, save_period=1) == 130
    weights = tmp_path / "run/weights"
    best = digest(weights / "best.pt")

    def see(trainer):
        seen.append(digest(trainer.best))
        raise KeyboardInterrupt

    seen = []
    hang_in(monkeypatch, "on_train_start", see)
    assert resume(weights / "epoch0.pt") == 130
    assert seen == [best]


def test_a_folder_that_is_used_again_holds_no_best_of_the_run_before(rated, tmp_path, scenes, small, large):
    assert train(tmp_path, name="run", data=scenes, model=large, epochs=2) == 0
    assert train(tmp_path, name="run", data=scenes, model=small, epochs=3, save=False) == 0
    assert [path.name for path in (tmp_path / "run/weights").iterdir()] == ["last.pt"]


def test_a_recipe_from_a_run_does_not_write_into_that_run(plain, tmp_path, scenes):
    before = digest(plain / "weights/best.pt")
    cfg = plain / "args.yaml"
    assert YAML.load(cfg)["save_dir"] == str(plain)
    assert cli.train([f"cfg={cfg}", "name=other"]) == 0
    model = YOLO(YAML.load(cfg)["model"])
    model.train(trainer=DS2D2Trainer, cfg=str(cfg), name="another", project=str(tmp_path))
    DS2D2Trainer(cfg=cfg, overrides={"name": "third"})
    DS2D2Trainer(cfg=cfg)  # of the same name
    assert (tmp_path / f"{plain.name}-2").is_dir()
    assert {path.name for path in tmp_path.iterdir()} >= {"other", "another", "third"}
    assert digest(plain / "weights/best.pt") == before
    assert (tmp_path / "other/weights/best.pt").is_file() and (tmp_path / "another/weights/best.pt").is_file()


def test_a_teacher_in_the_runs_own_folder(plain, scenes, small, capsys):
    teacher = plain / "weights/best.pt"
    before = {path: digest(path) for path in plain.rglob("*") if path.is_file()}
    for key in ("teacher", "distill_model", "amplifier"):
        assert train(plain.parent, name=plain.name, data=scenes, model=small, epochs=1, **{key: teacher}) == 2
        assert one_error(capsys).endswith("lies in this run's own folder and would be written over: give another name=")
    assert {path: digest(path) for path in plain.rglob("*") if path.is_file()} == before


def test_a_stage_does_not_take_another_runs_folder(plain, tmp_path, scenes, small, teacher, capsys):
    own = tmp_path / "own.pt"  # no amplifier beside it
    shutil.copy(teacher, own)
    before = digest(plain / "weights/best.pt")
    more = {"amplifier_epochs": 1, "epochs": 1}
    assert train(tmp_path, name="run", data=scenes, model=small, teacher=own, **more) == 2
    assert f"'{plain}', where the amplifier is to be trained, holds another run: give another" in one_error(capsys)
    assert digest(plain / "weights/best.pt") == before
    assert not (tmp_path / "run").exists()


def test_an_amplifier_that_another_run_has_kept_is_found(tmp_path, scenes, small, teacher, monkeypatch):
    """Its teacher's folder is read-only."""
    place = tmp_path / "readonly"
    place.mkdir()
    shutil.copy(teacher, place / "best.pt")

    def refuse(path, data):
        if path.parent == place:
            raise OSError(errno.EROFS, "Read-only file system")
        return write(path, data)

    write = AtomicPath.write_bytes
    monkeypatch.setattr(AtomicPath, "write_bytes", refuse)
    runs = tmp_path / "runs"
    for name in ("a", "b"):
        more = {"teacher": place / "best.pt", "amplifier_epochs": 1, "epochs": 1}
        assert train(runs, name=name, data=scenes, model=small, **more) == 0
    assert sorted(path.name for path in runs.iterdir()) == ["a", "a-amplifier", "b"]


@pytest.mark.parametrize("key", ["teacher", "distill_model", "amplifier"])
def test_a_run_without_a_teacher_gets_none_on_the_way(key, interrupted, teacher, capsys):
    before = digest(interrupted)
    assert resume(interrupted, **{key: teacher}) == 2
    needed = "distill_model" if key == "distill_model" else "teacher"
    assert f"{key}={teacher}: this run was started without {needed}=; start a new run" in one_error(capsys)
    assert digest(interrupted) == before


def test_ultralytics_processes_resume_a_run_without_a_teacher(interrupted, tmp_path):
    """They are told all of its settings."""
    first = DS2D2Trainer(overrides={"resume": str(interrupted)})
    child = DS2D2Trainer(cfg={**DEFAULT_CFG_DICT, "save_dir": ""}, overrides=vars(first.args))
    assert child.args.resume == str(interrupted) and child.save_dir == tmp_path / "run"


def test_a_run_is_not_resumed_with_other_classes(interrupted, tmp_path, scenes, capsys):
    more = YAML.load(scenes)
    more["names"] = [*demo.NAMES, "another"]
    YAML.save(tmp_path / "more.yaml", {**more, "path": str(scenes.parent)})
    assert resume(interrupted, data=tmp_path / "more.yaml") == 2
    count = len(demo.NAMES)
    assert f"has {count + 1} classes, and this run was started with {count}: resume it" in one_error(capsys)


def test_weights_loaded_in_python_are_known_when_the_first_stage_is_resumed(
    tmp_path, scenes, small, teacher, monkeypatch
):
    def keep(trainer):
        seen.append(weights(trainer.model))
        raise KeyboardInterrupt

    begun = DetectionModel(str(small), nc=len(demo.NAMES), verbose=False)
    begun.names = dict(enumerate(demo.NAMES))
    settings = {**RECIPE, "teacher": shutil.copy(teacher, tmp_path / "own.pt"), "amplifier_epochs": 2, "epochs": 1}
    settings |= {"data": str(scenes), "project": str(tmp_path), "name": "run", "trainer": DS2D2Trainer}
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        hang_in(patched, "on_model_save", stop)
        YOLO(str(small)).load(begun).train(**settings)
    stage, seen = tmp_path / "run-amplifier/weights", []
    assert sorted(path.name for path in stage.iterdir() if "state" not in path.name) == [
        "best.pt",
        "last.pt",
        "student.pt",
    ]
    kept = shutil.copy(stage / "student.pt", tmp_path)
    with monkeypatch.context() as patched:
        hang_in(patched, "on_pretrain_routine_end", lambda trainer: isinstance(trainer, DS2D2Trainer) and keep(trainer))
        assert resume(stage / "last.pt") == 130
    student, kept = part(seen[0], "student_model"), load_checkpoint(kept)[0].state_dict()
    assert same(student, kept) and torch.equal(student["model.0.conv.weight"], begun.model[0].conv.weight)
    # The next run of that folder begins with weights of its own
    hang_in(monkeypatch, "on_model_save", stop)
    for amplifier in tmp_path.glob("own-amplifier-*"):
        amplifier.unlink()
    assert train(tmp_path, data=scenes, model=small, teacher=tmp_path / "own.pt", amplifier_epochs=2, name="run") == 130
    assert not (stage / "student.pt").exists()


def test_a_stage_that_is_over_leaves_no_student(tmp_path, scenes, small, teacher):
    own = {"teacher": shutil.copy(teacher, tmp_path / "own.pt"), "amplifier_epochs": 1, "epochs": 1}
    model = YOLO(str(small)).load(DetectionModel(str(small), nc=len(demo.NAMES), verbose=False))
    model.train(**RECIPE, **own, data=str(scenes), project=str(tmp_path), name="run", trainer=DS2D2Trainer)
    assert sorted(path.name for path in (tmp_path / "run-amplifier/weights").iterdir()) == ["best.pt", "last.pt"]


@pytest.fixture(scope="module")
def halted(tmp_path_factory, scenes, small):
    folder = tmp_path_factory.mktemp("halted")
    with pytest.MonkeyPatch.context() as patched:
        hang_in(patched, "on_model_save", stop)
        assert train(folder, name="run", data=scenes, model=small, epochs=3) == 130
    return folder / "run"


@pytest.fixture
def interrupted(halted, tmp_path):
    """The last.pt of a plain run that was interrupted after the first of three epochs."""
    shutil.copytree(halted, tmp_path / "run")
    return tmp_path / "run/weights/last.pt"


def stop(trainer):
    raise KeyboardInterrupt


def test_layers_frozen_on_the_way_take_no_step_that_was_waiting(tmp_path, scenes, small, monkeypatch):
    def keep(trainer):
        state = trainer.model.state_dict()
        seen.append({name: state[name].clone() for name in state if name.startswith(("model.0.", "model.1."))})

    seen = []
    with monkeypatch.context() as patched:
        hang_in(patched, "on_model_save", stop)
        waiting = {"nbs": 12, "warmup_epochs": 0}  # three batches a step, two an epoch
        assert train(tmp_path, name="run", data=scenes, model=small, epochs=3, **waiting) == 130
    hang_in(monkeypatch, "on_train_start", keep)
    hang_in(monkeypatch, "on_train_epoch_end", keep)
    assert resume(tmp_path / "run/weights/last.pt", freeze=2) == 0
    learned = [name for name in seen[0] if name.endswith(("weight", "bias"))]
    assert learned and all(torch.equal(seen[0][name], seen[-1][name]) for name in learned)
    assert len(rows(tmp_path / "run")) == 3


@pytest.mark.parametrize(
    "given, said", [("nowhere.pt", "there is no such file"), (None, r"cannot teach model '.*retinanet-r18.yaml' \(")]
)
def test_ultralytics_distillation_names_what_it_cannot_pair(tmp_path, scenes, teacher, given, said, capsys):
    recipe = {"model": "retinanet-r18.yaml", "backbone_weights": "none", "distill_model": given or teacher, "epochs": 1}
    assert train(tmp_path, name="run", data=scenes, **recipe) == 2
    assert re.search(said, one_error(capsys))
    assert not (tmp_path / "run").exists()


def test_not_all_that_fails_beside_ultralytics_teacher_is_its_fault(
    tmp_path, scenes, small, teacher, monkeypatch, capsys
):
    def broken(*_, **__):
        raise ValueError("no labels")

    monkeypatch.setattr(DS2D2Trainer, "get_dataloader", broken)
    with pytest.raises(ValueError, match="^no labels$"):
        train(tmp_path, name="run", data=scenes, model=small, distill_model=teacher, epochs=1)


def test_ultralytics_teacher_is_not_fetched(scenes, small):
    with pytest.raises(UserError, match=r"distill_model 'yolo26s.pt' does not exist; weights are never fetched"):
        DS2D2Trainer(overrides={**RECIPE, "data": str(scenes), "model": str(small), "distill_model": "yolo26s.pt"})
