"""First stage: the high-frequency amplifier, a copy of the teacher's head trained on H(F^t) (DS2D2)."""

from __future__ import annotations

import gc
import glob
import hashlib
import io
from copy import deepcopy
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils import DEFAULT_CFG, LOGGER, callbacks, colorstr

from ds2d2_yolo.distill.alongside import ALONGSIDE
from ds2d2_yolo.distill.levels import detect_head
from ds2d2_yolo.distill.teacher import load_teacher
from ds2d2_yolo.engine import settings
from ds2d2_yolo.engine.base import SettingsTrainer
from ds2d2_yolo.engine.checkpoints import AtomicPath
from ds2d2_yolo.engine.labels import labels_digest
from ds2d2_yolo.engine.processes import agreed, is_first
from ds2d2_yolo.engine.runs import other_run, stage_folder
from ds2d2_yolo.engine.starts import BEGUN, keep_begun
from ds2d2_yolo.errors import UserError
from ds2d2_yolo.method.wavelet import high_frequency_map
from ds2d2_yolo.restricted import Refusal, load_tensors

FORMAT = "ds2d2-amplifier-1"
HIGH_PASS = ("wavelet", "wavelet_padding", "high_frequency")
# What the amplifier's weights depend on besides the teacher: the key of its file
RECIPE = ("wavelet", "wavelet_padding", "amplifier_epochs", "imgsz", "single_cls", "fraction")


class HighFrequency(nn.Module):
    """A layer between neck and head: every map becomes its high-frequency map (DS2D2)."""

    kind = "bands"  # of those saved before there was another

    def __init__(self, wavelet: str, padding: str, kind: str):
        super().__init__()
        self.wavelet, self.padding, self.kind = wavelet, padding, kind

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return H of every map, same shapes."""
        return [high_frequency_map(m, self.wavelet, self.padding, self.kind) for m in maps]


torch.serialization.add_safe_globals([HighFrequency])  # an unfinished amplifier's checkpoint holds one


def with_high_frequency(teacher: nn.Module, wavelet: str, padding: str, kind: str) -> nn.Module:
    """Return a copy of ``teacher`` whose head sees the high-frequency maps of its neck."""
    model = deepcopy(teacher)
    *layers, head = model.model
    layer = HighFrequency(wavelet, padding, kind)
    layer.i, layer.f, layer.type, layer.np = head.i, head.f, "HighFrequency", 0
    head.i, head.f = head.i + 1, -1
    model.model = nn.Sequential(*layers, layer, head)
    model.criterion = None
    vars(model).pop("class_weights", None)  # of the teacher's own training (cls_pw)
    return model


class Damaged(UserError):
    """A file whose content cannot be read."""


class AmplifierTrainer(SettingsTrainer):
    """Trains the amplifier with the detector's ordinary loss while the teacher's backbone and neck stay frozen."""

    student: nn.Module | None = None  # with weights from Python, which nothing in ``student_run`` names

    def __init__(self, cfg=DEFAULT_CFG, overrides: dict | None = None, _callbacks: dict | None = None):
        """Take ``student_run``, the arguments of the run to come, beside Ultralytics' and DS2D2's."""
        overrides = dict(overrides or {})
        student_run = overrides.pop("student_run", None)  # a hundred arguments more would flood the log
        # The loggers are the student's and may be open: most know one run at a time, and take this one's end for it
        with patch.object(callbacks, "add_integration_callbacks", lambda _: None):
            super().__init__(cfg, overrides, _callbacks)
        self.args.student_run = student_run or getattr(self.args, "student_run", None)

    def setup_model(self):
        """Put the high-frequency layer into the teacher, or restore the run to resume."""
        ckpt = None
        if self.resume:
            self.model, ckpt = load_checkpoint(self.model)
        else:
            self.model = with_high_frequency(self.load_teacher(), *settings.high_pass(self.args))
        self.model.criterion = None
        self.model.requires_grad_(True)
        self.args.freeze = list(range(len(self.model.model) - 1))
        return ckpt

    def save_model(self) -> bool:
        """Save the checkpoints, and before the first of them what the student will begin with."""
        if self._is_first_save and not self.resume:
            keep_begun(self.wdir / BEGUN, self.student)
        return super().save_model()


def ensure_amplifier(trainer: SettingsTrainer) -> str | None:
    """Return the path of the amplifier for a student's run: the one given, one kept from before, or a new one.

    Raises:
        UserError: The file given is none or belongs to another teacher, or no amplifier could be trained.
    """
    own = settings.of(trainer.args)
    teacher = trainer.load_teacher()
    if own.im_high == 0 or own.amplifier == ALONGSIDE:
        return own.amplifier
    if own.amplifier not in (None, "auto"):
        path = Path(own.amplifier)
        if trainer.resume and path.name and not path.is_file():
            places = Path(own.teacher).parent, stage_folder(trainer.save_dir) / "weights", trainer.wdir
            moved = (place / path.name for place in places)  # together with its teacher, or with the run
            path = next((place for place in moved if place.is_file()), path)
        amplifier_head(path, teacher, *settings.high_pass(own))
        return str(path)
    fingerprint = _fingerprint(teacher, trainer.data, vars(trainer.args))
    name = f"{Path(own.teacher).stem}-amplifier-{fingerprint}.pt"
    # Beside a teacher whose folder is read-only there is none, but with the run that trained it, whatever its name
    others = sorted(trainer.save_dir.parent.glob(f"*-amplifier/weights/{glob.escape(name)}"))
    places = (Path(own.teacher).parent / name, stage_folder(trainer.save_dir) / "weights" / name, *others)
    if kept := agreed(_sound(places) if is_first() else None):
        return kept
    return str(_train(trainer, name))


def _sound(places: tuple[Path, ...]) -> str | None:
    """The first amplifier that is there; ``None`` also where it is damaged, and has to be trained anew."""
    kept = next((place for place in places if place.is_file()), None)
    if kept is None:
        return None
    try:
        LOGGER.info(f"{colorstr('DS2D2:')} high-frequency amplifier {kept}, AP50 {_read(kept)['ap50']:.3f}")
    except Damaged as error:
        LOGGER.warning(f"amplifier '{kept}' is damaged ({error.__cause__}), and another one is trained in its place")
        return None
    return str(kept)


def _train(student: SettingsTrainer, name: str) -> Path:
    args = {k: v for k, v in vars(student.args).items() if k not in ("resume", "save_dir", "freeze", "time")}
    folder = stage_folder(student.save_dir)
    if refusal := agreed(other_run(folder) if is_first() else None):
        raise UserError(refusal)
    epochs = student.args.amplifier_epochs
    args |= {"epochs": epochs, "close_mosaic": min(student.args.close_mosaic, epochs // 2), "pretrained": True}
    args |= {
        "model": student.args.teacher,
        "save_dir": str(folder),
        "exist_ok": True,
        "resume": False,
        "patience": epochs,
    }
    args["student_run"] = {**vars(student.args), "save_dir": str(student.save_dir)}
    LOGGER.info(
        f"{colorstr('DS2D2:')} stage 1 of 2, {epochs} epochs: high-frequency amplifier of {student.args.teacher}"
    )
    trainer = AmplifierTrainer(overrides=args)
    trainer.student = student.model if student.loaded else None
    trainer.train()
    path = finish(trainer, name)
    if is_first():
        keep_begun(trainer.wdir / BEGUN, None)
    del trainer
    give_back()
    LOGGER.info(f"{colorstr('DS2D2:')} stage 2 of 2, {student.args.epochs} epochs: the student")
    return path


def give_back() -> None:
    """Free what the stage has left: a trainer stands in a circle of references, and with it models and images."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def finish(trainer: AmplifierTrainer, name: str | None = None) -> Path:
    """Keep the trained amplifier's head beside the teacher (or, where that is read-only, with the run)."""
    return agreed(_kept(trainer, name) if is_first() else None)


def _kept(trainer: AmplifierTrainer, name: str | None) -> Path:
    best = trainer.best if trainer.best.exists() else trainer.last
    model, ckpt = load_checkpoint(best)
    teacher = load_teacher(trainer.args.teacher)
    if name is None:
        # A resumed stage: named by the settings as the student gave them, training has rounded the image size since
        fingerprint = _fingerprint(teacher, trainer.data, trainer.args.student_run)
        name = f"{Path(trainer.args.teacher).stem}-amplifier-{fingerprint}.pt"
    metrics = ckpt.get("train_metrics") or {}
    folders = [Path(trainer.args.teacher).parent, Path(trainer.wdir)]
    return write_amplifier(detect_head(model), teacher.fingerprint, trainer.args, metrics, name, folders)


def write_amplifier(
    head: nn.Module, teacher: str, args, metrics: dict[str, float], name: str, folders: list[Path]
) -> Path:
    """Write a trained amplifier to the first of ``folders`` that takes it, and say so.

    Args:
        head: The trained head.
        teacher: The fingerprint of the teacher's weights.
        args: The run's, with what its high frequencies are.
        metrics: What Ultralytics' validation of it found.
        name: Of the file.
        folders: Where it may go, the best place first.

    Raises:
        UserError: None of them takes it.
    """
    data = {
        "format": FORMAT,
        "head": {k: v.half() if v.is_floating_point() else v for k, v in head.state_dict().items()},
        "teacher": teacher,
        **dict(zip(HIGH_PASS, settings.high_pass(args), strict=True)),
        "ap50": float(metrics.get("metrics/mAP50(B)", 0.0)),
        "ap": float(metrics.get("metrics/mAP50-95(B)", 0.0)),
    }
    buffer = io.BytesIO()
    torch.save(data, buffer)
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            AtomicPath(folder / name).write_bytes(buffer.getvalue())
        except OSError as error:
            LOGGER.warning(f"cannot keep the amplifier in {folder}: {error.strerror or error}")
            continue
        LOGGER.info(
            f"{colorstr('DS2D2:')} amplifier on high frequencies alone: AP50 {data['ap50']:.3f}, "
            f"AP50-95 {data['ap']:.3f}; kept as {folder / name}"
        )
        return folder / name
    raise UserError(f"the trained amplifier could not be kept in {' or '.join(map(str, folders))}")


def amplifier_head(path: str | Path, teacher: nn.Module, wavelet: str, padding: str, kind: str) -> nn.Module:
    """Return the head of the amplifier kept at ``path``, checked against its teacher and the high frequencies in use.

    Raises:
        UserError: No amplifier, one of another teacher, or one trained on other high frequencies.
    """
    data = _read(path)
    head = deepcopy(detect_head(teacher))
    try:
        head.load_state_dict(data["head"])
    except RuntimeError as error:
        raise UserError(f"amplifier '{path}' does not fit this teacher's head; use amplifier=auto") from error
    if data["teacher"] != teacher.fingerprint:
        raise UserError(f"amplifier '{path}' was trained for another teacher; use amplifier=auto")
    seen = {"high_frequency": "bands", **data}  # older files know no other kind
    if tuple(seen[key] for key in HIGH_PASS) != (wavelet, padding, kind):
        made = " ".join(f"{key}={seen[key]}" for key in HIGH_PASS)
        raise UserError(f"amplifier '{path}' was trained with {made}; use these, or amplifier=auto")
    return head.float()


def _read(path: str | Path) -> dict:
    if not Path(path).is_file():
        raise UserError(f"amplifier '{path}' does not exist; use amplifier=auto to train one")
    try:
        data = load_tensors(path)
    except Refusal:
        raise
    except (OSError, MemoryError) as error:  # of the machine: the file may be a good one
        raise UserError(f"amplifier '{path}' cannot be read now: {error}") from error
    except Exception as error:  # whatever a broken or foreign file makes the unpickler raise
        raise Damaged(f"amplifier '{path}' cannot be read; use amplifier=auto to train one") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise UserError(f"'{path}' is no DS2D2 amplifier; use amplifier=auto to train one, or delete it")
    return data


def _fingerprint(teacher: nn.Module, data: dict, student_run: dict) -> str:
    """Name everything that the amplifier was made from: teacher, training images and labels, classes and recipe."""
    parts = [teacher.fingerprint, labels_digest(data), str(data["names"])]
    parts += [f"{key}={student_run.get(key)}" for key in RECIPE]
    if (kind := student_run.get("high_frequency", "bands")) != "bands":  # the name of those from before stays
        parts.append(f"high_frequency={kind}")
    if (classes := student_run.get("classes")) is not None:
        parts.append(f"classes={sorted(classes if isinstance(classes, (list, tuple)) else [classes])}")
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:10]
