"""Knowledge amplifiers: frozen heads asked for comparable predictions (DS2D2).

A new kind of head is one class here that turns feature maps of both sides into one loss, and a line in ``KINDS``.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from ultralytics.nn.modules.conv import Conv
from ultralytics.nn.modules.head import Detect
from ultralytics.utils.tal import dist2bbox, make_anchors
from ultralytics.utils.torch_utils import fuse_conv_and_bn

from ds2d2_yolo.detectors.boxes import targets_of
from ds2d2_yolo.detectors.faster_rcnn import FasterRCNNDetect
from ds2d2_yolo.detectors.retinanet import RetinaNetDetect
from ds2d2_yolo.distill.frozen import FrozenConv2d
from ds2d2_yolo.errors import UserError
from ds2d2_yolo.method.implicit import confidence_mass, dense_implicit_loss, roi_implicit_loss
from ds2d2_yolo.method.shared import shared

PUBLISHED_IMAGES = 2  # of a GPU in the published runs


class Predictions(NamedTuple):
    """Class logits ``(B, N, K)`` and boxes ``(B, N, 4)`` in xyxy pixels of the batch image, float32."""

    logits: Tensor
    boxes: Tensor

    @classmethod
    def of(cls, head: Detect, raw: dict[str, Tensor], points: Tensor, stride: Tensor) -> Predictions:
        """Decode the raw outputs ``boxes (B, 4 reg_max, N)`` and ``scores (B, K, N)`` of a YOLO head.

        ``points (N, 2)`` and ``stride (N, 1)`` are the cells' centres, in cells, and strides.
        """
        with torch.autocast(points.device.type, enabled=False):  # boxes in half precision are off by pixels
            distances = head.dfl(raw["boxes"].float()) if head.reg_max > 1 else raw["boxes"].float()
            boxes = dist2bbox(distances, points.T[None], xywh=False, dim=1) * stride.T
        return cls(raw["scores"].float().transpose(1, 2), boxes.transpose(1, 2))

    def only(self, classes: list[int] | None) -> Predictions:
        """Return the same without the logits of other classes; ``None``: of none."""
        return self if classes is None else self._replace(logits=self.logits[..., classes])


@dataclass
class Step:
    """What amplifiers may need of a training step besides the maps.

    Attributes:
        batch: Ultralytics' batch.
        preds: What the student's head returned in training.
        cache: Computed once a step and shared by both amplifiers.
    """

    batch: dict
    preds: dict = field(default_factory=dict)
    cache: dict = field(default_factory=dict)


class Amplifier:
    """A frozen detection head, asked on some of its levels.

    Args:
        head: The head; it is copied, frozen and kept in eval mode. Not a module, so that no optimizer, checkpoint
            or EMA ever meets its weights.
        levels: Indices of the head's levels, in the order in which maps will come.
        branch: ``one2many`` or ``one2one``, for heads that have both.
        published: Behave as the published code does, oddities included.

    Attributes:
        box_gain: What boxes count for beside classes.
        classes: The only ones to be compared, in ascending order; ``None``: all.
    """

    needs_predictions = True  # of the student's head, in a ``Step``
    box_gain = 1.0
    classes: list[int] | None = None

    def __init__(self, head: nn.Module, levels: list[int], branch: str = "one2many", published: bool = False):
        self.head = FrozenConv2d.replace_in(fused(deepcopy(head).eval())).requires_grad_(False)
        self.levels, self.branch, self.published = levels, branch, published

    def to(self, fn) -> None:
        """Apply ``fn`` (a move or a cast) to every tensor of the head."""
        self.head._apply(fn)
        self.head.stride = fn(self.head.stride)

    def loss(self, student: list[Tensor], teacher: list[Tensor], step: Step) -> Tensor:
        """Return how far apart the head's predictions on both sides' maps are; gradients flow to the student's.

        Maps are ``(B, C, H, W)``, one a level.
        """
        raise NotImplementedError


class DenseAmplifier(Amplifier):
    """A head with predictions at every cell: subclasses say which."""

    def __call__(self, maps: list[Tensor]) -> Predictions:
        """Return the head's predictions on ``maps``, one ``(B, C, H, W)`` a level; gradients flow to the maps."""
        raise NotImplementedError

    def loss(self, student: list[Tensor], teacher: list[Tensor], step: Step) -> Tensor:
        """Return the dense implicit loss, normalised by the teacher's confidence."""
        with torch.no_grad():
            target = self(teacher)
        seen = self(student)
        with torch.autocast(seen.logits.device.type, enabled=False):
            cls, box = dense_implicit_loss(*seen, *target, **self.weights(target, student, step))
            return cls + self.box_gain * box

    def weights(self, target: Predictions, maps: list[Tensor], step: Step) -> dict:
        """Return normaliser and weights for ``dense_implicit_loss``."""
        return {"normalizer": confidence_mass(target.logits)}


class YOLOAmplifier(DenseAmplifier):
    """Any Ultralytics detection head."""

    needs_predictions = False

    def __init__(self, head: Detect, levels: list[int], branch: str = "one2many", published: bool = False):
        super().__init__(head, levels, branch, published)
        if branch == "one2one" and getattr(head, "one2one_cv2", None) is None:
            branch = "one2many"  # heads without an end-to-end branch have only this one
        self.box, self.cls = getattr(self.head, branch).values()
        self._sizes, self._cells = None, ()

    def to(self, fn) -> None:
        """Apply ``fn`` (a move or a cast) to every tensor of the head."""
        super().to(fn)
        self._sizes = None

    def __call__(self, maps: list[Tensor]) -> Predictions:
        """Return the head's predictions on ``maps``."""
        raw = {
            "boxes": torch.cat([self.box[i](m).flatten(2) for i, m in zip(self.levels, maps, strict=True)], 2),
            "scores": torch.cat([self.cls[i](m).flatten(2) for i, m in zip(self.levels, maps, strict=True)], 2),
        }
        return Predictions.of(self.head, raw, *self._anchors(maps)).only(self.classes)

    def _anchors(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return centres and strides of the maps' cells: those of the call before where the sizes are the same.

        Both sides and all steps of one image size share them; Ultralytics makes them with a wait for the GPU a level.
        """
        sizes = torch.is_inference_mode_enabled(), [m.shape[2:] for m in maps]  # autograd takes none from that mode
        if sizes != self._sizes:
            self._cells = make_anchors([m.detach().float() for m in maps], self.head.stride[self.levels], 0.5)
            self._sizes = sizes
        return self._cells


class RetinaNetAmplifier(DenseAmplifier):
    """RetinaNet's head: anchors that belong to no object for certain, and those outside the image, are left out."""

    def __call__(self, maps: list[Tensor]) -> Predictions:
        """Return the head's predictions on ``maps``."""
        raw, anchors = self.head.head(maps), torch.cat(self.head.anchors(maps, self.levels))
        deltas = raw["bbox_regression"].float()
        boxes = self.head.coder.decode_single(deltas.flatten(0, 1), anchors.repeat(len(deltas), 1))
        return Predictions(raw["cls_logits"].float(), boxes.reshape(deltas.shape)).only(self.classes)

    def weights(self, target: Predictions, maps: list[Tensor], step: Step) -> dict:
        """Return normaliser and masks; published: by the number of positives, and boxes everywhere."""
        anchors, matched = self._matched(maps, step)
        height, width = step.batch["img"].shape[2:]
        centre = (anchors[:, :2] + anchors[:, 2:]) / 2
        inside = (centre[:, 0] < width) & (centre[:, 1] < height)
        mask = ((matched != self.head.matcher.BETWEEN_THRESHOLDS) & inside).to(target.logits.dtype)
        if not self.published:
            return {"normalizer": confidence_mass(target.logits), "cls_mask": mask}
        positives = shared((matched >= 0).sum(1).clamp(min=1).sum().to(mask.dtype))
        everywhere = target.logits.amax(dim=-1).sigmoid()
        return {"normalizer": positives, "cls_mask": mask, "box_weight": everywhere}

    def _matched(self, maps: list[Tensor], step: Step) -> tuple[Tensor, Tensor]:
        """Return the anchors and what each belongs to, ``(B, N)``: the student's assignment where it is the same."""
        if "matched" not in step.cache:
            anchors = torch.cat(self.head.anchors(maps, self.levels))
            matched = step.preds.get("matched")
            if matched is None or not torch.equal(anchors, step.preds["anchors"]):
                matched = self.head.match(anchors, targets_of(step.batch))
            step.cache["matched"] = anchors, torch.stack(matched)
        return step.cache["matched"]


class FasterRCNNAmplifier(Amplifier):
    """Faster R-CNN's box head, asked about the regions that the student's detection loss has sampled."""

    def __init__(self, head: FasterRCNNDetect, levels: list[int], branch: str = "one2many", published: bool = False):
        super().__init__(head, levels, branch, published)
        if missing := sorted(set(range(head.options.roi_levels)) - set(levels)):
            strides = ", ".join(str(head.options.strides[i]) for i in missing)
            raise UserError(f"the student has no maps of stride {strides}, from which the teacher's regions are pooled")

    def __call__(self, maps: list[Tensor], rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``(R, K + 1)``, the background last, and deltas ``(R, 4 K)`` of ``rows (R, 5)``.

        K are the classes that are compared.
        """
        places = {level: i for i, level in enumerate(self.levels)}
        pooled = [maps[places[i]] for i in range(self.head.options.roi_levels)]
        logits, deltas = self.head.predict(pooled, rows)
        logits, deltas = logits.roll(-1, 1), deltas[:, 4:]
        if self.classes is None:
            return logits, deltas
        wanted = deltas.unflatten(1, (-1, 4))[:, self.classes].flatten(1)
        return logits[:, [*self.classes, logits.shape[1] - 1]], wanted

    def loss(self, student: list[Tensor], teacher: list[Tensor], step: Step) -> Tensor:
        """Return the RoI implicit loss; published: its class part times the number of two images' regions."""
        rows = step.preds["rois"]
        with torch.no_grad():
            target = self(teacher, rows)
        seen = self(student, rows)
        with torch.autocast(rows.device.type, enabled=False):
            cls, box = roi_implicit_loss(seen[0], target[0], seen[1], target[1])
            if self.published:  # whatever the batch: its weights are for so many images a GPU
                regions, images = shared(cls.new_tensor([len(rows), len(student[0])]))
                cls = cls * PUBLISHED_IMAGES * regions / images
            return cls + self.box_gain * box


KINDS = {RetinaNetDetect: RetinaNetAmplifier, FasterRCNNDetect: FasterRCNNAmplifier}


def amplifier_for(
    head: nn.Module, levels: list[int], branch: str = "one2many", published: bool = False, box_gain=1.0, classes=None
) -> Amplifier:
    """Return the amplifier that a head makes; ``classes``: a number or several, where not all are compared."""
    amplifier = KINDS.get(type(head), YOLOAmplifier)(head, levels, branch, published)
    amplifier.box_gain = box_gain
    if classes is not None:
        amplifier.classes = sorted(set(classes if isinstance(classes, (list, tuple)) else [classes]))
    return amplifier


def as_set(head: nn.Module, levels: list[int], own, learned: bool = False) -> Amplifier:
    """Return the amplifier that a head makes by settings: of this package, and Ultralytics' ``classes``.

    A head that has ``learned`` from labels under ``single_cls`` calls all objects class 0, whatever ``classes`` says.
    """
    classes = None if learned and getattr(own, "single_cls", False) else getattr(own, "classes", None)
    return amplifier_for(head, levels, own.branch, own.published, own.implicit_box, classes)


def fused(head: nn.Module) -> nn.Module:
    """Fold every BatchNorm of a frozen head into its convolution: the same function, fewer maps to keep."""
    for m in head.modules():
        if isinstance(m, Conv) and hasattr(m, "bn"):
            m.conv = fuse_conv_and_bn(m.conv, m.bn)
            delattr(m, "bn")
            m.forward = m.forward_fuse
    return head


class Neck(nn.Module):
    """Stands in for a model's head and hands the feature maps on, so that the model stops at its neck."""

    @classmethod
    def replace_head(cls, model: nn.Module) -> nn.Module:
        """Take the head off ``model`` and return it; afterwards the model returns the maps the head received."""
        head = model.model[-1]
        neck = cls()
        neck.i, neck.f, neck.type, neck.np = head.i, head.f, cls.__name__, 0
        model.model[-1] = neck
        return head

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return ``maps`` as they came."""
        return maps
