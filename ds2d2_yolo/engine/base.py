"""What the student's and the amplifier's trainer share: DS2D2's settings, whole checkpoints, clear endings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from torch import nn
from ultralytics.cfg import cfg2dict
from ultralytics.data.utils import check_det_dataset
from ultralytics.engine import trainer
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import DEFAULT_CFG, DEFAULT_CFG_DICT, LOGGER
from ultralytics.utils.checks import check_yaml
from ultralytics.utils.torch_utils import unset_deterministic

import ds2d2_yolo.threads  # noqa: F401  so that no core is idle
from ds2d2_yolo.detectors.registry import DetectorModel
from ds2d2_yolo.distill.alongside import ALONGSIDE
from ds2d2_yolo.distill.model import DS2D2Model
from ds2d2_yolo.distill.teacher import load_teacher
from ds2d2_yolo.engine import curves, model_yaml, settings
from ds2d2_yolo.engine.autobatch import WholeStep
from ds2d2_yolo.engine.checkpoints import AtomicPath, keep_rows, renew_best, stripping
from ds2d2_yolo.engine.detectors import Detectors
from ds2d2_yolo.engine.exact import ExactResume
from ds2d2_yolo.engine.finite import FiniteSteps
from ds2d2_yolo.engine.launch import ChildFailed, ending_together
from ds2d2_yolo.engine.offline import check_amp_offline
from ds2d2_yolo.engine.places import absolute, begun, not_given_anew, resolved
from ds2d2_yolo.engine.processes import ManyProcesses, agreed, is_first, join, together
from ds2d2_yolo.engine.runs import RunFolder, run_of
from ds2d2_yolo.engine.schedule import Schedule
from ds2d2_yolo.engine.signals import sigterm_interrupts, undisturbed
from ds2d2_yolo.engine.starts import check_not_written_over
from ds2d2_yolo.errors import UserError, explain
from ds2d2_yolo.mislabelled import telling
from ds2d2_yolo.plausible import bits, check_class_numbers, check_data_file
from ds2d2_yolo.restricted import not_from_a_file, trusted


class SettingsTrainer(ManyProcesses, ExactResume, FiniteSteps, Schedule, Detectors, DetectionTrainer):
    """Ultralytics' detection trainer that knows DS2D2's settings.

    They are ordinary training arguments: saved in ``args.yaml`` and checkpoints, restored on resume, handed to the
    processes of a multi-GPU run, and kept from Ultralytics' validators, which refuse what they do not know.
    """

    loaded = False  # whether the model has weights from elsewhere: YOLO(...).train() builds it before all else
    _folder: RunFolder | None = None
    _was_deterministic = False
    _is_first_save = True

    def __init__(self, cfg=DEFAULT_CFG, overrides: dict | None = None, _callbacks: dict | None = None):
        """Take Ultralytics' arguments and DS2D2's settings alike in ``cfg`` and ``overrides``.

        Raises:
            UserError: An unknown setting or a value out of range.
        """
        self._was_deterministic = torch.are_deterministic_algorithms_enabled()
        overrides = settings.check(not_given_anew(overrides or {}))
        for file in (overrides.get("cfg"), cfg):
            if isinstance(file, (str, Path)) and (found := check_yaml(file, hard=False)):  # it may be gone by now
                read = cfg2dict(found)
                own = not_from_a_file(read, file, {"model": overrides.get("model")})
                foreign = read.keys() - own.keys()
                # YOLO(...).train() has read them in; what it resumes it names as model=, too
                if overrides.get("resume") == overrides.get("model"):
                    foreign -= {"resume"}
                told = {k: v for k, v in overrides.items() if k not in foreign or v != read[k]}
                if "amplifier" in own.keys() & told.keys() and told["amplifier"] == read.get("amplifier"):
                    told["amplifier"] = own["amplifier"]
                overrides = told
                cfg = own if file is cfg else cfg
        cfg = {**DEFAULT_CFG_DICT, **settings.defaults(), **settings.check(cfg2dict(cfg))}
        if not any({**cfg, **overrides}.get(key) for key in ("model", "resume")):
            raise UserError("no model given; say model=yolo26n.yaml, or a checkpoint")
        if device := join(overrides.get("device", cfg.get("device"))):
            overrides["device"] = device
        if bits(asked := overrides.get("quantize", cfg.get("quantize"))) == 8:  # by steps before there are any
            raise UserError(f"quantize={asked}: training for quantization is not supported; quantize at export instead")
        with self._tidy(), trusted(overrides.get("trust", cfg["trust"])):
            super().__init__(cfg, overrides, _callbacks)
            self._check_processes()
        if self.args.compile and self.args.teacher:
            LOGGER.warning("'compile' is not supported with distillation and is switched off.")
            self.args.compile = False
        stops = self.args.val and 0 < self.args.patience < self.epochs
        if not self.args.save and (self.args.time or stops):
            LOGGER.warning(
                "save=False keeps the last epoch, and time= or patience= may end training before it: all are kept"
            )
            self.args.save = True
        self.wdir, self.last, self.best = (AtomicPath(p) for p in (self.wdir, self.last, self.best))

    @property
    def save_dir(self) -> Path:
        """The run's folder."""
        return self._folder.path

    @save_dir.setter
    def save_dir(self, path: Path) -> None:
        folder = Path(agreed(path))
        if not self.args.resume:
            check_not_written_over(self.args, folder)
        self._folder = RunFolder(folder)  # Ultralytics makes it right after naming it

    @contextmanager
    def _tidy(self) -> Iterator[None]:
        """Leave no empty run behind where the user's mistake or Ctrl-C ends it."""
        try:
            yield
        except BaseException as error:
            ended_by_user = isinstance(error, KeyboardInterrupt) or (isinstance(error, Exception) and explain(error))
            if isinstance(error, ChildFailed):  # which has tidied up, or left what tells why
                ended_by_user = False
            if ended_by_user and self._folder is not None and is_first():
                self._folder.remove_if_worthless()
            if not self._was_deterministic:  # also where Ultralytics' own care for it has not begun
                unset_deterministic()
            raise

    def train(self) -> None:
        """Train.

        Raises:
            UserError: Anything in the settings, data or files that the user can mend.
            KeyboardInterrupt: Interrupted; the message says how to resume.
        """
        try:
            with sigterm_interrupts(), self._tidy(), trusted(self.args.trust), together(self._how_to_resume), telling():
                self.prepare()
                with ending_together():
                    super().train()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(self._how_to_resume()) from None

    def _setup_train(self) -> None:
        """Set up as Ultralytics does, fetching nothing."""
        with patch.object(trainer, "check_amp", check_amp_offline):
            super()._setup_train()

    def auto_batch(self, *args, **kwargs) -> int:
        """Return the batch that fills a GPU as far as ``batch=`` says, by whole steps: the teacher's part with them."""
        model = self.model
        if isinstance(model, (DS2D2Model, DetectorModel)):
            self.model = WholeStep(model)
        try:
            return super().auto_batch(*args, **kwargs)
        finally:
            self.model = model

    def _how_to_resume(self) -> str:
        with undisturbed():
            return self._folder.how_to_resume(self.resume)

    def prepare(self) -> None:
        """Do what comes before the training itself."""

    def get_dataset(self) -> dict:
        """Return what the data set's file says.

        Raises:
            UserError: It makes no sense, or ``classes`` names classes that it lacks.
        """
        check_data_file(self.args.data, "train")
        data = super().get_dataset()
        check_class_numbers(self.args.classes, self._own_names(data))
        return data

    def _own_names(self, data: dict) -> dict:
        """The classes that the data's file names, also where Ultralytics has made one of them."""
        return (check_det_dataset(self.args.data, False, self.args.split) if self.args.single_cls else data)["names"]

    def load_teacher(self) -> nn.Module:
        """Return the teacher, which must know the classes that the data's file names."""
        names = None if self.args.single_cls and self.resume else self._own_names(self.data)
        return load_teacher(self.args.teacher, names, self.data["channels"], self.args.single_cls)

    def preprocess_batch(self, batch: dict) -> dict:
        """Prepare a batch as Ultralytics does.

        Raises:
            UserError: The images have other channels than the data set's file says.
        """
        if (found := batch["img"].shape[1]) != (said := self.data["channels"]):
            raise UserError(f"the images have {found} channels, and data file '{self.args.data}' says channels: {said}")
        return super().preprocess_batch(batch)

    def get_model(self, cfg=None, weights: nn.Module | bool | None = None, verbose: bool = True) -> nn.Module:
        """Build the model that ``cfg``, the path of a YAML file or what a checkpoint has kept of one, describes.

        Raises:
            UserError: It is malformed, or made for another task than detection.
        """
        with self._tidy():  # YOLO(...).train() comes here before train()
            description = model_yaml.read(cfg, self.args.model, self.data["nc"])
            with model_yaml.explained(cfg, self.args.model):
                return super().get_model(description, weights, verbose)

    def check_resume(self, overrides: dict) -> None:
        """Restore the arguments of the run to resume; a teacher or amplifier that has moved may be named anew."""
        movable = {k: overrides[k] for k in ("teacher", "amplifier", "distill_model") if overrides.get(k)}
        if self.args.resume:
            movable, self.args.data = absolute(movable), absolute({"data": self.args.data})["data"]
        super().check_resume({k: v for k, v in overrides.items() if k not in (*movable, "trust")})
        if self.args.resume:
            self._check_movable(movable)
        if (given := movable.get("amplifier")) and self.args.resume:
            own = settings.of(self.args).amplifier
            if (own == ALONGSIDE) != (given == ALONGSIDE):
                kind = "that learns alongside" if own == ALONGSIDE else "trained beforehand"
                raise UserError(f"this run was started with an amplifier {kind}: resume it without amplifier=")
        if self.args.resume and not overrides.get("save_dir") and (moved := run_of(self.args.resume)):
            self.args.save_dir = str(moved)
        found = resolved(vars(self.args)) if self.args.resume else begun(vars(self.args))
        for key, value in {**vars(settings.of(self.args)), **found, **movable}.items():
            setattr(self.args, key, value)
        self.args.trust = bool(overrides.get("trust"))  # for who resumes to say, not for the checkpoint

    def _check_movable(self, given: dict) -> None:
        """Refuse a teacher for a run that was started without one."""
        for key, value in given.items():
            needed = "distill_model" if key == "distill_model" else "teacher"
            own = value in ("auto", getattr(self.args, key, None))  # Ultralytics' own processes are told everything
            if not own and not getattr(self.args, needed, None):
                raise UserError(
                    f"{key}={value}: this run was started without {needed}=; start a new run with "
                    f"model={self.args.resume} {key}=... to go on from its weights"
                )

    def resume_training(self, ckpt: dict | None) -> None:
        """Go on from the checkpoint; rows of ``results.csv`` for epochs that it did not live to see are dropped.

        Raises:
            UserError: The data set named has another number of classes.
        """
        if self.resume and ckpt is not None:
            names = getattr(ckpt.get("ema"), "names", None)
            if names and len(names) != self.data["nc"]:
                raise UserError(
                    f"data '{self.args.data}' has {self.data['nc']} classes, and this run was started with "
                    f"{len(names)}: resume it with its own data, or start a new run with model={self.args.resume}"
                )
            if is_first():
                renew_best(self.best, Path(self.args.resume), ckpt)
        super().resume_training(ckpt)
        if self.resume and self.csv.exists() and is_first():
            keep_rows(self.csv, self.start_epoch)

    def get_validator(self):
        """Return Ultralytics' validator, made with Ultralytics' arguments alone."""
        full, self.args = self.args, settings.ultralytics_only(self.args)
        try:
            return super().get_validator()
        finally:
            self.args = full

    def save_model(self) -> bool:
        """Save the checkpoints, each whole or not at all.

        Raises:
            UserError: They cannot be written; those of the last epoch are still there.
        """
        # With save=False another run's may be left in a folder that is used again, and is no one's best any more
        stale = self._is_first_save and not self.resume and self.best.exists()
        self._is_first_save = False
        try:
            saved = super().save_model()
            if stale and self.best_fitness != self.fitness:
                self.best.unlink()
            return saved
        except OSError as error:
            kept = f"resume with resume={self.last} once there is room" if self.last.exists() else "nothing was saved"
            raise UserError(f"cannot save a checkpoint in {self.wdir}: {error.strerror or error}; {kept}") from error

    def final_eval(self) -> None:
        """Strip the checkpoints and validate the best one; what cannot be stripped stays as it was trained.

        Raises:
            UserError: The stripped checkpoints cannot be written.
        """
        self.forget_state()
        with patch.object(trainer, "strip_optimizer", stripping(self.last, self.best)):
            super().final_eval()

    def plot_metrics(self) -> None:
        """Draw ``results.png`` with Ultralytics' plot, the four terms and their shares among its curves."""
        if (picture := curves.plot(self.csv, self.save_dir)) is None:
            return super().plot_metrics()
        self.on_plot(picture)
