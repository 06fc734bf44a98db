"""The student-teacher model that the trainer trains: one student, four terms, nothing of the teacher in its state."""

from __future__ import annotations

from copy import deepcopy
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from ultralytics.nn.distill_model import DistillationModel
from ultralytics.utils.torch_utils import copy_attr

from ds2d2_yolo.detectors.faster_rcnn import FasterRCNNDetect
from ds2d2_yolo.detectors.registry import DetectorModel
from ds2d2_yolo.distill.alongside import ALONGSIDE, learn, learner
from ds2d2_yolo.distill.amplifiers import Amplifier, Neck, Step, as_set
from ds2d2_yolo.distill.balance import TERMS, Balance
from ds2d2_yolo.distill.early import EarlyGradients
from ds2d2_yolo.distill.frozen import FrozenConv2d
from ds2d2_yolo.distill.levels import detect_head, neck_channels, shared_levels, tapped
from ds2d2_yolo.distill.objects import has_objects, scale_weights
from ds2d2_yolo.distill.view import as_ultralytics
from ds2d2_yolo.errors import UserError
from ds2d2_yolo.method.explicit import explicit_loss
from ds2d2_yolo.method.implicit import match_statistics
from ds2d2_yolo.method.wavelet import high_frequency_map

IMPLICIT = ("im_full", "im_high")  # which of them works in even and in odd steps where they take turns


class DS2D2Model(DistillationModel):
    """A student that learns from labels and, through four terms, from a frozen teacher (DS2D2).

    It takes the place of Ultralytics' own ``DistillationModel`` in training, EMA, resume and NaN recovery. Teacher and
    amplifiers are held outside the module tree: they are in no state dict, optimizer, EMA, checkpoint or gradient.

    Args:
        student: The Ultralytics detection model to train.
        teacher: A frozen detection model (see ``load_teacher``); it is taken apart, so hand in one of your own.
        high_frequency_head: The trained high-frequency amplifier's head; ``None`` when ``im_high`` is 0 or
            ``amplifier=alongside``: then it is trained here and in the state, as the adapters are.
        settings: DS2D2's settings (see ``cfg/ds2d2.yaml``), and Ultralytics' ``classes`` where not all are trained.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, high_frequency_head, settings: SimpleNamespace):
        nn.Module.__init__(self)  # the parent's would register hooks and put the teacher into the module tree
        self.settings = settings
        self.levels = shared_levels(student, teacher)
        channels = student.yaml.get("channels", 3)
        self.projector = self._adapters(neck_channels(student, channels), neck_channels(teacher, channels))
        strides = torch.cat([student.stride.flatten(), teacher.stride.flatten()]).unique()
        self.student_model = student
        copy_attr(self, student, exclude=("training",))
        self.stride = strides  # images must fit the coarser of the two
        self.teacher_model = None  # what Ultralytics strips; ours is in no module
        self.balance = Balance(
            {name: getattr(settings, name) for name in TERMS},
            settings.balance,
            settings.distill_warmup,
            settings.distill_final,
        )
        self.amplifier = None
        if settings.amplifier == ALONGSIDE and "im_high" in self.balance.active:
            self.amplifier = learner(teacher)
            high_frequency_head = detect_head(self.amplifier)
        self.measure_next, self.renew_next, self.learn_next, self.turn = True, False, True, 0
        self.boost = 2.0**10  # on losses inside half-precision heads; the trainer's loss scale takes its place
        self._known: dict[str, Tensor] = {}  # every term as it was last computed
        self._freeze(teacher, high_frequency_head)
        self.to(next(student.parameters()).device)

    def _adapters(self, student: list[int], teacher: list[int]) -> nn.ModuleList:
        adapters = []
        if self.settings.published:
            channels = {c for level in self.levels for c in (student[level.student], teacher[level.teacher])}
            if len(channels) > 1:
                raise UserError(f"published=True knows one adapter for all levels, but these have {channels} channels")
            return nn.ModuleList([nn.Conv2d(*channels, *channels, 1, bias=False)] * len(self.levels))
        for level in self.levels:
            ours, theirs = student[level.student], teacher[level.teacher]
            if self.settings.adapter == "never" and ours != theirs:
                both = f"{ours} channels and the teacher {theirs}"
                raise UserError(f"adapter=never, but at stride {level.stride} the student has {both}")
            needed = self.settings.adapter == "always" or ours != theirs
            # A of DS2D2; PyTorch's own class, because a checkpoint that can be resumed holds it
            adapters.append(nn.Conv2d(ours, theirs, 1, bias=False) if needed else nn.Identity())
        return nn.ModuleList(adapters)

    def _freeze(self, teacher: nn.Module, high_frequency_head: nn.Module | None) -> None:
        head, implicit = detect_head(teacher), set(IMPLICIT) & set(self.balance.active)
        if implicit and type(head) is FasterRCNNDetect and type(detect_head(self.student_model)) is not type(head):
            raise UserError(
                "a Faster R-CNN teacher is asked about the student's proposals, and this student makes none: "
                "distil its features alone (im_full=0 im_high=0), or take another teacher"
            )
        full = self._asked(head) if "im_full" in implicit else None
        high = self._asked(high_frequency_head, learned=True) if high_frequency_head is not None else None
        Neck.replace_head(teacher)
        FrozenConv2d.replace_in(teacher.eval().requires_grad_(False).fuse(verbose=False))
        # A plain namespace: nn.Module would register modules, and they would be saved and counted
        self._frozen = SimpleNamespace(teacher=teacher, full=full, high=high)

    def _asked(self, head: nn.Module, learned: bool = False) -> Amplifier:
        """Make a frozen amplifier of a copy of ``head``."""
        return as_set(head, [level.teacher for level in self.levels], self.settings, learned)

    # What Ultralytics asks of its distillation model

    def train(self, mode: bool = True):
        """Set the student's and the adapters' mode; the frozen teacher is no child and stays in eval."""
        return nn.Module.train(self, mode)

    def _apply(self, fn, recurse: bool = True):
        super()._apply(fn, recurse)
        if self._frozen is not None:
            self._frozen.teacher._apply(fn)
            for amplifier in filter(None, (self._frozen.full, self._frozen.high)):
                amplifier.to(fn)
        return self

    def _register_feature_hooks(self) -> None:
        """Register nothing: features are tapped while the loss is computed."""

    def _remove_feature_hooks(self) -> None:
        """Remove nothing."""

    def __deepcopy__(self, memo):
        """Copy everything that is trained; the frozen part is never copied (EMA, checkpoints)."""
        copy = self.__class__.__new__(self.__class__)
        memo[id(self)] = copy
        for key, value in self.__dict__.items():
            copy.__dict__[key] = None if key == "_frozen" else deepcopy(value, memo)
        return copy

    def as_ultralytics(self, measured: dict) -> DistillationModel:
        """Return a view for a checkpoint that needs Ultralytics alone; ``measured``: the live model's."""
        return as_ultralytics(self, measured)

    def measured(self) -> dict:
        """Return what was measured on the way, as plain numbers, for a checkpoint."""
        return {**self.balance.state(), **{k: float(v) for k, v in self._known.items() if k == "amplifier"}}

    def restore(self, measured: dict) -> None:
        """Go on from what was ``measured``."""
        self.balance.restore(measured)
        if "amplifier" in measured:
            self._known["amplifier"] = torch.tensor(measured["amplifier"], device=next(self.parameters()).device)

    # The loss

    def loss(self, batch: dict, preds=None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the detection loss with the weighted terms appended, times the batch size, and all items by name.

        An amplifier that learns alongside adds its own. In eval mode there is the detection loss alone, the rest is 0.
        """
        image = batch["img"]
        own = () if self.amplifier is None else ("amplifier",)
        none = {name: torch.zeros((), device=image.device) for name in (*TERMS, *own)}
        if not self.training:
            loss, items = self.student_model.loss(batch, self.student_model(image) if preds is None else preds)
            return loss, {**items, **none}
        if not own and not self.balance.active:  # nothing is asked of the teacher
            loss, items = self.student_model.loss(batch, self.student_model(image))
            return torch.cat([loss.reshape(-1), loss.new_zeros(1)]), {**items, **none}
        waits = self.measure_next and not has_objects(batch)  # no batch to balance by: labels pull oddly hard
        self.measure_next &= not waits
        with torch.no_grad():
            taught = self._frozen.teacher(image)
        learning = self._learn(taught, batch)
        taught = [taught[level.teacher] for level in self.levels]
        late, found = self._needs_predictions(), {}

        def distil(neck: list[Tensor], preds=None) -> None:
            found["distillation"] = self._distil(neck, taught, Step(batch, preds or {}))
            taught.clear()

        # Where nothing else is needed for it, before the student's head has a graph: the peak is lower by all of it
        with tapped(detect_head(self.student_model), None if late else distil) as neck:
            preds = self.student_model(image)
        detection, items = self.student_model.loss(batch, preds)
        if late:
            distil(neck, preds)
        total, terms = found["distillation"]
        scale = self._loss_scale(len(image))
        if total is None:
            # At levels that the teacher lacks, too: Faster R-CNN's labels pull hardest at its finest
            self.balance.measure(detection.sum() / scale, terms, neck)
            self.measure_next = False
            total = self.balance.total(terms)
        else:  # a step that measures has both implicit terms, and takes neither's turn
            self.turn += 1
        self.measure_next |= waits
        distillation = torch.as_tensor(total, device=image.device).reshape(1) * scale
        self._known |= {name: term.detach() for name, term in terms.items()}
        return torch.cat([detection.reshape(-1), distillation, *learning]), {**items, **none, **self._known}

    def _learn(self, teacher: list[Tensor], batch: dict) -> list[Tensor]:
        """Return the loss of the amplifier that learns alongside, ``(1,)``, in the steps in which it does.

        It is asked as it was when last renewed: a head that holds still for a while is fused, and keeps no maps.
        """
        if self.amplifier is None:
            return []
        if self.renew_next:
            self._frozen.high, self.renew_next = self._asked(detect_head(self.amplifier), learned=True), False
        if not self.learn_next:
            return []
        with torch.no_grad():
            maps = [self._high_frequency(m) for m in teacher]
        loss, self._known["amplifier"] = learn(self.amplifier, self.student_model, maps, batch, self.boost)
        return [loss.reshape(1)]

    def _needs_predictions(self) -> bool:
        """Whether an amplifier must know what the student's head has made of the batch."""
        return any(a.needs_predictions for a in filter(None, (self._frozen.full, self._frozen.high)))

    def _distil(self, neck: list[Tensor], teacher: list[Tensor], step: Step) -> tuple[Tensor | None, dict]:
        """Return this step's weighted sum of the terms, and the terms: the sum is ``None`` where these are to be
        measured first, and then they have their gradients."""
        student, names = [neck[level.student] for level in self.levels], self._on_turn()
        if not names:
            return torch.zeros(()), {}
        if self.measure_next:
            return None, self.terms(student, teacher, step)
        rests = len(names) < len(self.balance.active)  # what works every other step has twice the weight
        factors = {n: self.balance.multiplier(n) * (2.0 if rests and n in IMPLICIT else 1.0) for n in names}
        return self._cut_off(student, teacher).together(self._groups(teacher, step, names), factors)

    def _on_turn(self) -> list[str]:
        """The terms that this step computes: all, or one implicit one less where these take turns."""
        active, resting = self.balance.active, IMPLICIT[1 - self.turn % 2]
        if self.settings.implicit == "together" or self.measure_next or not set(IMPLICIT) <= set(active):
            return active
        return [name for name in active if name != resting]

    def _loss_scale(self, images: int) -> float:
        """What the student's model multiplies its mean losses with, for so many images."""
        student = self.student_model
        return student.loss_scale(images) if isinstance(student, DetectorModel) else images

    def terms(self, student: list[Tensor], teacher: list[Tensor], step: Step) -> dict[str, Tensor]:
        """Return this step's terms, float32 scalars, for the shared levels' maps of both models.

        Args:
            student: The student's neck maps, ``(B, C, H, W)`` a level; the adapters are applied here.
            teacher: The teacher's, without gradient.
            step: The batch, and what the student's head made of it.
        """
        names = self._on_turn()
        sizes = {name: self.balance.size(name) for name in names}
        terms = self._cut_off(student, teacher).separate(self._groups(teacher, step, names), sizes)
        return {name: terms[name] for name in names}

    def _cut_off(self, student: list[Tensor], teacher: list[Tensor]) -> EarlyGradients:
        def adapt(maps: list[Tensor]) -> list[Tensor]:
            adapted = [adapter(m) for adapter, m in zip(self.projector, maps, strict=True)]
            if self.settings.align:
                adapted = [match_statistics(s, t) for s, t in zip(adapted, teacher, strict=True)]
            return adapted

        return EarlyGradients(student, adapt, self.projector.parameters(), self.boost)

    def _groups(self, teacher: list[Tensor], step: Step, names: list[str]) -> list:
        """Return functions that make the terms ``names`` of the student's maps, raw and adapted."""

        def asked(maps: EarlyGradients) -> list[Tensor]:
            return maps.raw if self.settings.published else maps.adapted  # its adapter serves the explicit stream

        groups = []
        if {"ex_low", "ex_high"} & set(names):
            groups.append(lambda maps: self._explicit(maps.adapted, teacher, step.batch))
        if "im_full" in names:
            groups.append(lambda maps: {"im_full": self._frozen.full.loss(asked(maps), teacher, step)})
        if "im_high" in names:
            groups.append(lambda maps: self._high(asked(maps), teacher, step))
        return groups

    def _high(self, student: list[Tensor], teacher: list[Tensor], step: Step) -> dict[str, Tensor]:
        with torch.no_grad():
            taught = [self._high_frequency(m) for m in teacher]
        return {"im_high": self._frozen.high.loss([self._high_frequency(m) for m in student], taught, step)}

    def _high_frequency(self, feature: Tensor) -> Tensor:
        s = self.settings
        return high_frequency_map(feature, s.wavelet, s.wavelet_padding, s.high_frequency).to(feature.dtype)

    def _explicit(self, student: list[Tensor], teacher: list[Tensor], batch: dict) -> dict[str, Tensor]:
        s = self.settings
        weights = scale_weights(batch, teacher, s.wavelet, s.wavelet_padding) if s.disw else None
        with torch.autocast(student[0].device.type, enabled=False):
            return explicit_loss(student, teacher, weights, s.wavelet, s.wavelet_padding, s.normalize)
