"""The student's trainer: Ultralytics' detection training with a DS2D2 teacher, or plain without one."""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy
from math import ceil
from pathlib import Path
from unittest.mock import patch

from torch import nn
from ultralytics.engine import trainer
from ultralytics.nn.distill_model import DistillationModel
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER, RANK, colorstr
from ultralytics.utils.torch_utils import init_seeds, unwrap_model

from ds2d2_yolo.detectors.registry import DetectorModel
from ds2d2_yolo.detectors.weights import check_backbone
from ds2d2_yolo.distill.alongside import ALONGSIDE
from ds2d2_yolo.distill.inherit import inherit
from ds2d2_yolo.distill.model import DS2D2Model
from ds2d2_yolo.distill.teacher import load_weights_of, weights_fingerprint
from ds2d2_yolo.engine import alongside, settings
from ds2d2_yolo.engine.amplifier_file import amplifier_head
from ds2d2_yolo.engine.amplifier_trainer import ensure_amplifier
from ds2d2_yolo.engine.base import SettingsTrainer
from ds2d2_yolo.engine.clipping import clipped_apart
from ds2d2_yolo.engine.runs import stage_folder
from ds2d2_yolo.engine.starts import BEGUN, check_learns, local, paired_by_ultralytics, student_of, warn_of_pair
from ds2d2_yolo.errors import UserError
from ds2d2_yolo.stages import refuse_stage


class DS2D2Trainer(SettingsTrainer):
    """Trains a student with ``teacher=best.pt``; without a teacher it trains a plain detector.

    Examples:
        >>> from ultralytics import YOLO
        >>> from ds2d2_yolo import DS2D2Trainer
        >>> YOLO("yolo26n.yaml").train(trainer=DS2D2Trainer, data="dior.yaml", teacher="best.pt")  # doctest: +SKIP
    """

    @property
    def distilling(self) -> bool:
        """Whether a teacher is given."""
        return bool(self.args.teacher)

    def check_resume(self, overrides: dict) -> None:
        """Restore the arguments of the run to resume, or see that a new one has what it starts from.

        Raises:
            UserError: It is an amplifier stage, which has a trainer of its own; there are no such weights.
        """
        super().check_resume(overrides)
        if self._begins_elsewhere() and self.args.pretrained:
            self.args.pretrained = local("pretrained", self.args.pretrained)
        if isinstance(self.args.distill_model, (str, Path)) and self.args.distill_model:
            self.args.distill_model = local("distill_model", self.args.distill_model)
        if getattr(self.args, "student_run", None):
            raise UserError(
                f"{self.args.resume} is of an unfinished amplifier stage; go on with it and the student by "
                f"train.py resume={self.args.resume}, or ds2d2_yolo.engine.train.train({{'resume': ...}})"
            )

    def prepare(self) -> None:
        """Train the high-frequency amplifier where one is needed and missing."""
        self._check_inheritance()
        if self._begins_elsewhere() and self.args.pretrained:
            refuse_stage(load_weights_of("pretrained", self.args.pretrained), f"pretrained '{self.args.pretrained}'")
        if not self.distilling and not self.resume and (idle := settings.without_effect(self.args)):
            LOGGER.warning(f"{', '.join(idle)}: without teacher= this changes nothing")
        if self.distilling:
            if self.args.dis != DEFAULT_CFG_DICT["dis"]:
                LOGGER.warning(f"dis= goes with distill_model= alone; DS2D2's weights are {', '.join(settings.TERMS)}")
            self.args.amplifier = ensure_amplifier(self, self._check_pair())
            # The first stage drew random numbers and switched determinism off; without it the student is the same
            init_seeds(self.args.seed + 1 + RANK, deterministic=self.args.deterministic)

    def _check_inheritance(self) -> None:
        """Refuse two sources for the student's first weights, and none."""
        if not self.args.inherit or self.resume:
            return
        if not self.distilling:
            raise UserError("inherit=True starts a student from its teacher's weights; say teacher=best.pt")
        given = {key: getattr(self.args, key) for key in ("model", "pretrained")}
        for key, value in given.items():
            if isinstance(value, (str, Path)) and Path(value).suffix not in (".yaml", ".yml"):
                raise UserError(
                    f"{key}={value} brings weights of its own, and inherit=True takes the teacher's; "
                    "give the student as a .yaml file, without pretrained=, or say inherit=False"
                )
        if self.loaded:
            raise UserError("the model has loaded weights, and inherit=True takes the teacher's; drop one of them")

    def _check_pair(self) -> nn.Module:
        """Return the teacher; refuse a pair that cannot meet before hours are spent on the amplifier."""
        model = self.model
        if not isinstance(model, nn.Module) and Path(model).suffix == ".pt":
            model = load_checkpoint(model)[0]
            refuse_stage(model, f"model '{self.args.model}'")
        cfg = getattr(model, "student_model", model).yaml if isinstance(model, nn.Module) else model
        teacher = self.load_teacher()
        # A checkpoint brings its weights: those that a backbone began with may be gone by now
        brought = bool(self.args.pretrained) if self._begins_elsewhere() else isinstance(model, nn.Module)
        student = self.get_model(cfg, False if brought else None, verbose=False)
        if self._begins_elsewhere() and self.args.pretrained and isinstance(student, DetectorModel):
            check_backbone(student, student_of(self.args.pretrained)[0], self.args.pretrained)
        check_learns(student, self.freeze_list(student), self.args.freeze, bool(self.resume))
        if self.args.inherit and not self.resume:
            self._inherit(student, teacher)
        DS2D2Model(student, deepcopy(teacher), None, settings.of(self.args))  # which takes its head off
        return teacher

    def setup_model(self):
        """Build or restore the student and put it together with its teacher."""
        source, ckpt = self._distilled_checkpoint()
        if source is None or self._begins_elsewhere():
            mine = nullcontext() if self.args.distill_model else patch.object(trainer, "load_checkpoint", student_of)
            with mine:
                ckpt = super().setup_model()
        else:
            self.model = self.get_model(cfg=source.student_model.yaml, weights=source)
        if self.distilling and not isinstance(self.model, DistillationModel):
            self.model = self._with_teacher(self.model)
            if source is not None and self.resume:
                self._restore(source)
        return ckpt

    def _begins_elsewhere(self) -> bool:
        """Whether ``pretrained`` says what weights the student starts from, or that it has none."""
        given = self.args.pretrained
        return not self.resume and (given is False or isinstance(given, (str, Path)))

    def get_model(self, cfg=None, weights=None, verbose: bool = True) -> nn.Module:
        """Build the student; of the checkpoint of an unfinished distilled run it takes the student's weights."""
        self.loaded = self.loaded or isinstance(weights, nn.Module)
        refuse_stage(weights, f"model '{self.args.model}'")
        return super().get_model(cfg, getattr(weights, "student_model", weights), verbose)

    def _distilled_checkpoint(self) -> tuple[DistillationModel | None, dict | None]:
        """Load the unfinished distilled run that ``model`` or ``resume`` names; ``None`` where it is anything else."""
        if isinstance(self.model, nn.Module) or Path(self.model).suffix != ".pt" or self.args.distill_model:
            return None, None
        weights, ckpt = load_checkpoint(self.model)
        return (weights, ckpt) if isinstance(weights, DistillationModel) else (None, None)

    def _restore(self, source: DistillationModel) -> None:
        other = f"teacher '{self.args.teacher}' is not the one that this run was started with"
        if getattr(source, "taught_by", self.model.taught_by) != self.model.taught_by:
            raise UserError(other)
        try:
            self.model.projector.load_state_dict(source.projector.state_dict())
            if self.model.amplifier is not None:
                self.model.amplifier.load_state_dict(source.amplifier.state_dict())
        except RuntimeError as error:
            raise UserError(other) from error
        if getattr(source, "amplified_by", self.model.amplified_by) != self.model.amplified_by:
            LOGGER.warning(f"amplifier '{self.args.amplifier}' is not the one that this run was started with")
        if measured := getattr(source, "ds2d2_balance", None):  # Ultralytics' own class: of an older checkpoint's none
            self.model.restore(measured)

    def _with_teacher(self, student: nn.Module) -> DS2D2Model:
        student.args = self.args
        own = settings.of(self.args)
        teacher = self.load_teacher()
        own.single_cls = bool(self.args.single_cls)
        own.classes = None if own.single_cls and len(teacher.names) == 1 else self.args.classes
        if own.inherit and not self.resume:
            part = self._inherit(student, teacher)
            say = LOGGER.info if part >= 0.5 else LOGGER.warning
            say(f"{colorstr('DS2D2:')} {part:.0%} of the student's parameters start from the teacher's")
        head = None
        if own.im_high > 0 and own.amplifier != ALONGSIDE:
            head = amplifier_head(own.amplifier, teacher, *settings.high_pass(own))
        if not self.resume:  # before it becomes a part of the model, without its head
            warn_of_pair(self.args.model, own.teacher, student, teacher, self.args.imgsz)
        model = DS2D2Model(student.to(self.device), teacher.to(self.device), head, own)
        model.taught_by = teacher.fingerprint
        model.amplified_by = None if head is None else weights_fingerprint(head)
        strides = ", ".join(str(level.stride) for level in model.levels)
        LOGGER.info(f"{colorstr('DS2D2:')} teacher {own.teacher}, levels of stride {strides}, {settings.weights(own)}")
        return model

    def _inherit(self, student: nn.Module, teacher: nn.Module) -> float:
        if not (part := inherit(student, teacher)):
            raise UserError(
                f"inherit=True: '{self.args.model}' and teacher '{self.args.teacher}' have no layer in common; "
                "take a model of the teacher's family, or say inherit=False"
            )
        return part

    def _setup_train(self) -> None:
        """Set up, and name both models where Ultralytics' own distillation cannot pair them."""
        with paired_by_ultralytics(self.args.model, self.args.distill_model):
            super()._setup_train()

    def set_model_attributes(self) -> None:
        """Attach classes and arguments to the student as well as to the wrapper."""
        super().set_model_attributes()
        if isinstance(self.model, DS2D2Model):
            student = self.model.student_model
            student.nc, student.names, student.args = self.model.nc, self.model.names, self.model.args
            student.task = self.args.task  # an unfinished last.pt is exported by this

    def _model_train(self) -> None:
        super()._model_train()
        self._step = 0
        if (model := self._distilled()) is not None:
            model.measure_next = True  # once an epoch at least, for the log
            model.turn = self.epoch  # neither of two implicit terms begins every epoch
            if model.amplifier is not None:
                model.amplifier.epoch = self.epoch
                guess = self.args.time and not self.epoch  # how many there will be nobody knows yet
                self._part = 1.0 if guess else min(self.args.amplifier_epochs / self.epochs, 1.0)

    def preprocess_batch(self, batch: dict) -> dict:
        """Prepare a batch as Ultralytics does, and tell the weights' schedule how far training is."""
        if (model := self._distilled()) is not None:
            model.balance.set_progress(self.epoch + self._step / max(len(self.train_loader), 1), self.epochs)
            if self._step % self.args.balance_interval == 0:
                model.measure_next |= self.args.balance == "gradient"
                model.renew_next = True
            model.learn_next = model.amplifier is not None and self._amplifier_learns()
            if self.amp:  # an overflow in a frozen head then lowers the scale, and both with it
                model.boost = self.scaler.get_scale()
            self._step += 1
        return super().preprocess_batch(batch)

    def _amplifier_learns(self) -> bool:
        """Whether an amplifier learns alongside in this batch's step: one of some that are spread evenly over the run.

        They are as many as a stage of ``amplifier_epochs`` has.
        """
        step = (self._last_step + 1) // max(self._accumulate, 1)  # all batches of an optimizer's step, or none
        return ceil((step + 1) * self._part) > ceil(step * self._part)

    def optimizer_step(self) -> None:
        """Step with gradients clipped in parts."""
        model = self._distilled()
        with nullcontext() if model is None else clipped_apart(model, self.args.clip == "labels"):
            super().optimizer_step()

    def final_eval(self) -> None:
        """Strip and validate the student; keep and rate an amplifier that has learned alongside."""
        learner = getattr(self.ema.ema, "amplifier", None)
        alongside.keep(self, learner)  # what follows takes long, and may be interrupted
        super().final_eval()
        alongside.rate(self, self._distilled(), learner)

    def _handle_nan_recovery(self, epoch: int) -> bool:
        """Recover as Ultralytics does, which knows nothing of an amplifier that learns alongside."""
        recovered, model = super()._handle_nan_recovery(epoch), self._distilled()
        if recovered and model is not None and model.amplifier is not None:
            model.amplifier.load_state_dict(self.ema.ema.amplifier.state_dict())
        return recovered

    def _distilled(self) -> DS2D2Model | None:
        model = unwrap_model(self.model)
        return model if isinstance(model, DS2D2Model) else None

    def label_loss_items(self, loss_items=None, prefix: str = "train"):
        """Label the loss items; the terms exist in training only, validation has no columns for them."""
        labelled = super().label_loss_items(loss_items, prefix)
        if prefix == "train":
            if loss_items is not None:  # Ultralytics rounds to five decimals, and terms can be smaller than that
                small = {f"train/{k}": float(f"{float(loss_items[k]):.5g}") for k in settings.TERMS if k in loss_items}
                labelled |= small
            return labelled
        terms = {f"{prefix}/{name}" for name in (*settings.TERMS, "amplifier")}
        if isinstance(labelled, list):
            return [name for name in labelled if name not in terms]
        return {name: value for name, value in labelled.items() if name not in terms}

    def save_metrics(self, metrics: dict) -> None:
        """Save the epoch's row, with every term's share of the gradient at the student's neck."""
        if (model := self._distilled()) is not None:
            shares = model.balance.shares()
            names = ("detection", *settings.TERMS)
            metrics = {**metrics, **{f"share/{name}": round(shares.get(name, 0.0), 5) for name in names}}
            text = ", ".join(f"{name} {shares.get(name, 0.0):.0%}" for name in names)
            LOGGER.info(f"{colorstr('DS2D2:')} share of the gradient at the neck: {text}")
        super().save_metrics(metrics)

    def save_model(self) -> bool:
        """Save checkpoints that need Ultralytics alone: the EMA is written as Ultralytics' own distillation model."""
        ours, begun = self.ema.ema, stage_folder(self.save_dir) / "weights" / BEGUN
        if not isinstance(ours, DS2D2Model):
            return super().save_model()
        self.ema.ema = ours.as_ultralytics(self._distilled().measured())
        try:
            saved = super().save_model()
            if str(self.args.pretrained) != str(begun):  # from here on the student has a checkpoint of its own
                begun.unlink(missing_ok=True)
            return saved
        finally:
            self.ema.ema = ours
