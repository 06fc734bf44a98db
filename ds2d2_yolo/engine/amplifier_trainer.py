"""First stage: the high-frequency amplifier, a copy of the teacher's head trained on H(F^t) (DS2D2)."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn
from ultralytics.data.utils import get_split_fraction
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils import DEFAULT_CFG, LOGGER, callbacks, colorstr

from ds2d2_yolo.distill.alongside import ALONGSIDE
from ds2d2_yolo.distill.levels import detect_head
from ds2d2_yolo.distill.teacher import load_teacher
from ds2d2_yolo.engine import settings
from ds2d2_yolo.engine.amplifier_file import Damaged, amplifier_head, read_amplifier, warn_if_blind, write_amplifier
from ds2d2_yolo.engine.base import SettingsTrainer
from ds2d2_yolo.engine.processes import agreed, is_first
from ds2d2_yolo.engine.runs import other_run, stage_folder
from ds2d2_yolo.engine.starts import BEGUN, keep_begun
from ds2d2_yolo.errors import UserError
from ds2d2_yolo.labels import labels_digest
from ds2d2_yolo.method.wavelet import high_frequency_map
from ds2d2_yolo.plausible import pixels

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


class AmplifierTrainer(SettingsTrainer):
    """Trains the amplifier with the detector's ordinary loss while the teacher's backbone and neck stay frozen."""

    unread = ()  # the arguments are the student's, whose own trainer says which of them have no effect
    student: nn.Module | None = None  # with weights from Python, which nothing in ``student_run`` names

    def __init__(self, cfg=DEFAULT_CFG, overrides: dict | None = None, _callbacks: dict | None = None):
        """Take ``student_run``, the arguments of the run to come, beside Ultralytics' and DS2D2's."""
        overrides = dict(overrides or {})
        student_run = overrides.pop("student_run", None)  # a hundred arguments more would flood the log
        # The loggers are the student's and may be open: most know one run at a time, and take this one's end for it
        with patch.object(callbacks, "add_integration_callbacks", lambda _: None):
            super().__init__(cfg, overrides, _callbacks)
        self.args.student_run = student_run or getattr(self.args, "student_run", None)
        self.named, self.kept = None, None  # what the amplifier's file is to be called, and where it lies in the end

    def setup_model(self):
        """Put the high-frequency layer into the teacher, or restore the run to resume."""
        ckpt = None
        if self.resume:
            self.model, ckpt = load_checkpoint(self.model)
            if self.load_teacher().fingerprint != getattr(self.model, "fingerprint", None):
                raise UserError(
                    f"teacher '{self.args.teacher}' is not the one that this stage began with; name that one, "
                    "or start the run again"
                )
        else:
            self.model = with_high_frequency(self.load_teacher(), *settings.high_pass(self.args))
        self.model.criterion = None
        self.model.requires_grad_(True)
        self.args.freeze = list(range(len(self.model.model) - 1))
        return ckpt

    def final_eval(self) -> None:
        """Keep the amplifier, then strip and validate: that takes long for a large teacher, and may be interrupted."""
        self.kept = finish(self)
        super().final_eval()

    def save_model(self) -> bool:
        """Save the checkpoints, and before the first of them what the student will begin with."""
        if self._is_first_save and not self.resume:
            keep_begun(self.wdir / BEGUN, self.student)
        return super().save_model()


def ensure_amplifier(trainer: SettingsTrainer, teacher: nn.Module) -> str | None:
    """Return the path of the amplifier for a student's run: the one given, one kept from before, or a new one.

    Raises:
        UserError: The file given is none or belongs to another teacher, or no amplifier could be trained.
    """
    own = settings.of(trainer.args)
    if own.im_high == 0 or own.amplifier == ALONGSIDE:
        return own.amplifier
    if own.amplifier not in (None, "auto"):
        path = Path(own.amplifier)
        if trainer.resume and path.name and not path.is_file():
            places = stage_folder(trainer.save_dir) / "weights", Path(own.teacher).parent, trainer.wdir
            moved = (place / path.name for place in places)  # together with its teacher, or with the run
            path = next((place for place in moved if place.is_file()), path)
        amplifier_head(path, teacher, *settings.high_pass(own))
        return str(path)
    name = _file_name(Path(own.teacher), teacher.fingerprint, trainer.data, vars(trainer.args))
    alike = "*" + name.removeprefix(Path(own.teacher).stem)  # the teacher's file may have had another name
    folders = [Path(own.teacher).parent, stage_folder(trainer.save_dir) / "weights"]
    # Beside a teacher whose folder is read-only there is none, but with the run that trained it, whatever its name
    folders += sorted(trainer.save_dir.parent.glob("*-amplifier/weights"))
    places = [place for folder in folders for place in (folder / name, *sorted(folder.glob(alike)))]
    if kept := agreed(_sound(places) if is_first() else None):
        return kept
    return str(_train(trainer, name))


def _sound(places: Iterable[Path]) -> str | None:
    """The first amplifier that is there and whole; ``None``: one has to be trained."""
    for kept in dict.fromkeys(places):
        if not kept.is_file():
            continue
        try:
            ap50 = read_amplifier(kept)["ap50"]
        except Damaged as error:
            LOGGER.warning(f"amplifier '{kept}' is damaged ({error.__cause__}), and another one takes its place")
            continue
        LOGGER.info(f"{colorstr('DS2D2:')} high-frequency amplifier {kept}, AP50 {ap50:.3f}")
        warn_if_blind(ap50)
        return str(kept)
    return None


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
    if not (own := type(student)).__module__.startswith("ds2d2_yolo."):
        LOGGER.warning(f"stage 1 knows nothing of what {own.__name__} overrides: amplifier=alongside trains without it")
    trainer = AmplifierTrainer(overrides=args)
    trainer.student, trainer.named = student.model if student.loaded else None, name
    trainer.train()
    path = trainer.kept or finish(trainer)  # with device=0,1 other processes have trained
    del trainer
    give_back()
    LOGGER.info(f"{colorstr('DS2D2:')} stage 2 of 2, {student.args.epochs} epochs: the student")
    return path


def give_back() -> None:
    """Free what the stage has left: a trainer stands in a circle of references, and with it models and images."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def finish(trainer: AmplifierTrainer) -> Path:
    """Keep the trained amplifier's head beside the teacher (or, where that is read-only, with the run).

    Raises:
        UserError: It can be kept nowhere, or the teacher is not the one any more that it was trained for.
    """
    return agreed(_kept(trainer) if is_first() else None)


def _kept(trainer: AmplifierTrainer) -> Path:
    model, ckpt = load_checkpoint(trainer.best if trainer.best.exists() else trainer.last)
    own, given = model.fingerprint, Path(trainer.args.teacher)
    # A resumed stage: named by the settings as the student gave them, training has rounded the image size since
    name = trainer.named or _file_name(given, own, trainer.data, trainer.args.student_run)
    changed = load_teacher(given).fingerprint != own
    folders = [Path(trainer.wdir)] if changed else [given.parent, Path(trainer.wdir)]  # not beside another teacher
    path = write_amplifier(detect_head(model), own, trainer.args, ckpt.get("train_metrics") or {}, name, folders)
    if changed:
        raise UserError(f"teacher '{given}' has changed while its amplifier was trained; start again for the new one")
    return path


def _as_one(key: str, value):
    """The value in one spelling of several that mean the same."""
    if key == "fraction":
        return get_split_fraction(list(value) if isinstance(value, tuple) else value, "train")
    if key != "imgsz":
        return value
    size = pixels(value)
    return size[0] if isinstance(size, (list, tuple)) and len(size) == 1 else size


def _file_name(teacher: Path, fingerprint: str, data: dict, student_run: dict) -> str:
    """Name everything that the amplifier was made from: teacher, training images and labels, classes and recipe."""
    parts = [fingerprint, labels_digest(data), str(data["names"])]
    parts += [f"{key}={_as_one(key, student_run.get(key))}" for key in RECIPE]
    if (kind := student_run.get("high_frequency", "bands")) != "bands":  # the name of those from before stays
        parts.append(f"high_frequency={kind}")
    if (channels := data.get("channels", 3)) != 3:  # to which a teacher of others is converted
        parts.append(f"channels={channels}")
    if (classes := student_run.get("classes")) is not None:
        parts.append(f"classes={sorted(classes if isinstance(classes, (list, tuple)) else [classes])}")
    return f"{teacher.stem}-amplifier-{hashlib.sha256('|'.join(parts).encode()).hexdigest()[:10]}.pt"
