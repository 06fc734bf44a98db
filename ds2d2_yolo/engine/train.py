"""One door to training: teacher, plain baseline, distilled student, and every resumed run."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from pathlib import Path
from unittest.mock import patch

from ultralytics.cfg import get_cfg
from ultralytics.engine import trainer
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils import LOGGER, YAML, colorstr
from ultralytics.utils.checks import check_yaml

from ds2d2_yolo.engine import settings
from ds2d2_yolo.engine.amplifier_trainer import AmplifierTrainer, finish, give_back
from ds2d2_yolo.engine.base import SettingsTrainer
from ds2d2_yolo.engine.places import resolved, run_from_here
from ds2d2_yolo.engine.processes import leave
from ds2d2_yolo.engine.runs import finished, in_the_first_stage, student_folder
from ds2d2_yolo.engine.starts import BEGUN
from ds2d2_yolo.engine.trainer import DS2D2Trainer
from ds2d2_yolo.errors import UserError
from ds2d2_yolo.paths import find_config, folder_instead
from ds2d2_yolo.restricted import not_from_a_file, trusted
from ds2d2_yolo.stages import is_stage

DEFAULT_STUDENT = "yolo26n.yaml"
# What Ultralytics lets change in a run that is resumed; a stage has its own, by which its amplifier is known
FOR_THE_STUDENT = ("close_mosaic", "freeze", "imgsz", "patience", "save_period", "time", "val")
FOR_BOTH = ("augmentations", "batch", "cache", "channels_last", "data", "device", "plots", "teacher", "workers")


def train(overrides: dict) -> Path:
    """Train what the settings ask for and return the best checkpoint's path.

    Args:
        overrides: Ultralytics' training arguments and DS2D2's settings; ``cfg`` names a YAML file of more of them,
            ``resume`` a ``last.pt`` of either stage.

    Raises:
        UserError: Anything in the settings, data or files that the user can mend.
        KeyboardInterrupt: Interrupted; the message says how to resume.
    """
    overrides = dict(overrides)
    if overrides.get("cfg"):
        file = check_yaml(find_config(overrides.pop("cfg"), "cfg"))
        overrides = {**not_from_a_file(YAML.load(file), file, overrides), **overrides}
    with trusted(overrides.get("trust", False)):
        best = _train(overrides)
    leave()
    return best


def _train(overrides: dict) -> Path:
    if internal := settings.INTERNAL.keys() & overrides.keys():
        raise UserError(f"unknown setting '{min(internal)}'; see cfg/ds2d2.yaml")
    overrides |= {kind: find_config(overrides[kind], kind) for kind in ("data", "model") if kind in overrides}
    if overrides.get("resume"):
        return _resume(overrides)
    settings.check(overrides)  # first: data= may be there, misspelt
    if not overrides.get("data"):
        raise UserError("no data set given; say data=my.yaml (or run without arguments for the demo)")
    model = overrides["model"] = overrides.get("model") or DEFAULT_STUDENT
    if Path(str(model)).suffix not in {".pt", ".yaml", ".yml"}:
        if hint := folder_instead(model):
            raise UserError(f"model {hint}")
        raise UserError(f"model '{model}' is neither a checkpoint, a .pt file, nor a model's description, a .yaml")
    if str(model).endswith(".pt") and not Path(model).is_file():
        raise UserError(f"model '{model}' does not exist; weights are never fetched: give a local .pt file, or a .yaml")
    with patch.object(trainer, "get_save_dir", run_from_here):  # from where data= and teacher= lead, too
        begun = DS2D2Trainer(overrides=overrides)
    return _run(begun)


def _run(one: SettingsTrainer) -> Path:
    one.train()
    best = Path(one.best if one.best.exists() else one.last)
    LOGGER.info(f"{colorstr('DS2D2:')} trained {best}")
    return best


def _check_not_begun(run: Path, last: Path, ckpt: dict) -> None:
    """Refuse to go on from a stage of which the student, in ``run``, has begun."""
    begun = [file for name in ("last.pt", "best.pt") if (file := run / "weights" / name).is_file()]
    with suppress(Exception):  # whatever a broken file makes the unpickler raise
        if all(_when(load_checkpoint(file)[1]) < _when(ckpt) for file in begun):
            return  # an older run has left them there
    raise UserError(f"{last} is of a stage whose student is on its way or trained: {begun[0]}")


def _when(ckpt: dict) -> datetime:
    return datetime.fromisoformat(ckpt["date"]).astimezone()


def _resume(overrides: dict) -> Path:
    last = Path(str(overrides["resume"]))
    if not last.is_file():
        hint = in_the_first_stage(last) or "; name the last.pt of the interrupted run"
        raise UserError(f"resume={overrides['resume']} is no file{hint}")
    try:
        model, ckpt = load_checkpoint(last)
    except UserError:
        raise
    except Exception as error:  # whatever a broken file makes the unpickler raise
        raise UserError(f"resume={last} cannot be loaded: {str(error).splitlines()[0]}") from error
    student_run = model.args.get("student_run")
    if finished(ckpt) and not student_run:
        if is_stage(model):  # of an older version, which left out what the student needs
            raise UserError(f"{last} is of a stage that is over; start the command again that began it")
        raise UserError(f"{last} is a finished run; start a new one with model={last} to go on from its weights")
    if not student_run:
        return _run(DS2D2Trainer(overrides=overrides))
    students = {k: overrides[k] for k in FOR_THE_STUDENT if overrides.get(k) is not None}
    get_cfg(overrides=settings.check(students))  # a mistake is told now, not when the stage is over
    amplifier = AmplifierTrainer(overrides={k: v for k, v in overrides.items() if k not in students})
    run = student_folder(Path(amplifier.save_dir)) or Path(student_run["save_dir"])  # both may have moved
    if not student_run.get("resume"):
        _check_not_begun(run, last, ckpt)
    if str(named := overrides.get("amplifier") or "auto").lower() != "auto":
        LOGGER.info(f"amplifier={named} takes the place of what this stage was to train; now the student")
        path = named
    else:
        if not finished(ckpt):
            _run(amplifier)
        path = amplifier.kept or finish(amplifier)
        LOGGER.info("the amplifier is finished; now the student")
    given = {k: overrides[k] for k in FOR_BOTH if overrides.get(k) is not None} | students
    known = _of_the_student(student_run, given, run, amplifier.wdir / BEGUN)
    del amplifier, model, ckpt
    give_back()
    return _run(DS2D2Trainer(overrides={**known, "amplifier": str(path), "trust": overrides.get("trust", False)}))


def _of_the_student(student_run: dict, given: dict, run: Path, begun: Path) -> dict:
    """The settings with which the student goes on, or begins, once its amplifier's stage is over."""
    if student_run.get("resume"):  # its amplifier was lost on its way, and trained anew for the epochs to come
        own = {k: v for k, v in student_run.items() if k in (*FOR_BOTH, *FOR_THE_STUDENT) and v is not None}
        own |= {k: v for k, v in resolved(student_run).items() if k in own}
        named = Path(str(student_run["resume"])).absolute()  # in its run's folder, which may have moved, or a copy
        in_its_run = named.parent == Path(student_run["save_dir"]).absolute() / "weights"
        last = run / "weights" / named.name if in_its_run else named
        if not last.is_file():
            raise UserError(f"'{last}', from which the student was to go on, does not exist")
        return {**own, **given, "resume": str(last), "save_dir": str(run)}
    known = {k: v for k, v in student_run.items() if k not in ("student_run", "cfg")}
    known |= resolved(known) | given
    if begun.is_file():
        known["pretrained"] = str(begun)
    return {**known, "save_dir": str(run), "resume": False}
