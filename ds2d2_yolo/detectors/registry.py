"""RetinaNet and Faster R-CNN as Ultralytics models: their names in model YAMLs, and the model class they run in."""

from __future__ import annotations

import math
from copy import deepcopy

import torch
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import _utils, anchor_utils, faster_rcnn, retinanet, roi_heads, rpn
from torchvision.ops import box_iou, feature_pyramid_network, misc, poolers
from ultralytics.nn import tasks

from ds2d2_yolo.detectors.boxes import Anchors
from ds2d2_yolo.detectors.classes import remap
from ds2d2_yolo.detectors.faster_rcnn import FasterRCNNDetect, FasterRCNNOptions
from ds2d2_yolo.detectors.modules import FPN, Normalize, ResNet
from ds2d2_yolo.detectors.retinanet import RetinaNetDetect, RetinaNetOptions
from ds2d2_yolo.detectors.weights import first_convolution, for_channels
from ds2d2_yolo.errors import UserError

HEADS = (RetinaNetDetect, FasterRCNNDetect)
NAMES = {c.__name__: c for c in (Normalize, ResNet, FPN, *HEADS)}
# Ultralytics' parser looks layers up among its module's names, and has no other place to announce one
vars(tasks).update(NAMES)
# What their checkpoints hold beside PyTorch's and Ultralytics' own, for restricted loading (ULTRALYTICS_SAFE_LOAD)
_HELD = (
    *(*NAMES.values(), Anchors, RetinaNetOptions, FasterRCNNOptions, IntermediateLayerGetter),
    *(resnet.BasicBlock, resnet.Bottleneck, misc.Conv2dNormActivation, box_iou),
    *(_utils.BoxCoder, _utils.Matcher, _utils.BalancedPositiveNegativeSampler, anchor_utils.AnchorGenerator),
    *(retinanet.RetinaNetHead, retinanet.RetinaNetClassificationHead, retinanet.RetinaNetRegressionHead),
    *(rpn.RegionProposalNetwork, rpn.RPNHead, roi_heads.RoIHeads),
    *(faster_rcnn.TwoMLPHead, faster_rcnn.FastRCNNConvFCHead, faster_rcnn.FastRCNNPredictor),
    *(feature_pyramid_network.FeaturePyramidNetwork, feature_pyramid_network.LastLevelP6P7),
    *(feature_pyramid_network.LastLevelMaxPool, poolers.MultiScaleRoIAlign),
)


def is_detector(cfg: dict) -> bool:
    """Whether a parsed model YAML ends in a head of this package."""
    head = cfg.get("head") or [[None, None, None]]
    return head[-1][2] in {h.__name__ for h in HEADS}


class DetectorModel(tasks.DetectionModel):
    """An Ultralytics detection model with a head of this package: trains, validates, predicts and exports like any.

    Args:
        cfg: Model YAML, as a path or parsed.
        ch: Input channels.
        nc: Classes; default: the YAML's.
        verbose: Print the layers.

    Raises:
        UserError: The YAML's parts do not fit together.
    """

    criterion = None  # Ultralytics asks for one; here the head computes its loss
    end2end = property(lambda self: True, lambda self, value: None, doc="NMS is part of the head, always.")

    def __init__(self, cfg, ch: int = 3, nc: int | None = None, verbose: bool = True):
        super().__init__(cfg, ch, nc, verbose)
        for m in self.modules():
            if isinstance(m, nn.BatchNorm2d):  # Ultralytics' constants are not those these backbones are trained with
                m.eps, m.momentum = 1e-5, 0.1
        own, nc = self.model[-1].nc, self.yaml["nc"]
        if own != nc:
            raise UserError(f"the head's row of the model's YAML says {own} classes; write nc there, which is {nc}")
        self._dry_run(ch)

    def _dry_run(self, channels: int) -> None:
        """Pass an empty image through, so that parts that do not fit are found now."""
        # Long, so that the width of even the coarsest map tells its stride, and low, to be quick
        head = self.model[-1]
        image = torch.zeros(1, channels, int(self.stride.max()), 2 * int(head.stride.max()))
        hook = head.register_forward_pre_hook(lambda _, args: _check_strides(head, args[0], image))
        try:
            with torch.no_grad():
                self.eval()(image)
        except RuntimeError as error:
            raise UserError(
                f"the parts of the model's YAML do not fit together: {str(error).splitlines()[0]}"
            ) from error
        finally:
            hook.remove()
            self.train()

    def load(self, weights: dict | nn.Module, verbose: bool = True) -> None:
        """Load what fits of a model's weights, as Ultralytics does; the first convolution for other channels, too.

        Args:
            weights: The model, or a checkpoint that holds it.
            verbose: Say how much of it fits.
        """
        model = (weights.get("ema") or weights["model"]) if isinstance(weights, dict) else weights
        if isinstance(model, DetectorModel):
            first = first_convolution(self.state_dict())
            own, given = (m.state_dict().get(first) for m in (self, model))
            if given is not None and own.shape[1] != given.shape[1]:
                model = deepcopy(model)
                *path, name = first.split(".")
                layer = model.get_submodule(".".join(path))
                setattr(layer, name, nn.Parameter(for_channels(given, own.shape[1])))
        super().load(model, verbose)

    def _predict_once(self, x: Tensor, profile: bool = False, embed=None):
        """Pass images through; ``embed``: return each image's vector of means over these layers' maps, all levels'."""
        if not embed:
            return super()._predict_once(x, profile)
        found: list[Tensor] = []
        layers = [self.model[i] for i in sorted(set(embed))]
        hooks = [layer.register_forward_hook(lambda _, __, maps: found.append(_means(maps))) for layer in layers]
        try:
            super()._predict_once(x, profile)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat(found, 1).unbind()

    def _remap_cls_by_names(self, csd: dict[str, Tensor], src_model: nn.Module, verbose: bool = True) -> int:
        """Carry the rows of a class over by its name; Ultralytics, which asks for it, knows its own heads' alone."""
        return remap(self.state_dict(), self, csd, src_model, verbose)

    def freeze_statistics(self, frozen: bool = True) -> None:
        """Keep the running statistics of the backbone's BatchNorms as they are, or let them follow the data again."""
        for m in self.model:
            if isinstance(m, ResNet):
                m.frozen_statistics = bool(frozen)
                m.train(m.training)

    def loss(self, batch: dict, preds=None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the losses, scaled for the optimizer, and as they are for the log.

        torchvision's losses are means over the images of a batch. Times ``batch / nbs`` they sum to the mean over
        ``nbs`` images (Ultralytics' nominal batch) where gradients are accumulated, and a larger batch takes a
        proportionally larger step: the learning rate is that of a batch of ``nbs``.
        """
        preds = self.forward(batch["img"]) if preds is None else preds
        raw = preds[1] if isinstance(preds, tuple) else preds
        items = self.model[-1].loss(raw, batch)
        total = torch.stack(list(items.values())) * self.loss_scale(len(batch["img"]))
        return total, {name: value.detach() for name, value in items.items()}

    def loss_scale(self, images: int) -> float:
        """Return what the mean loss of so many images is multiplied with."""
        args = getattr(self, "args", None)
        nominal = args.get("nbs") if isinstance(args, dict) else getattr(args, "nbs", None)
        return images / (nominal or 64)


def _means(maps: Tensor | list[Tensor]) -> Tensor:
    return torch.cat([m.mean((2, 3)) for m in (maps if isinstance(maps, (list, tuple)) else [maps])], 1)


def _check_strides(head: nn.Module, maps: list[Tensor], image: Tensor) -> None:
    for m, stride in zip(maps, head.anchors.strides, strict=False):  # the anchors compare their numbers
        wanted = [math.ceil(edge / stride) for edge in image.shape[2:]]
        if list(m.shape[2:]) != wanted:
            raise UserError(
                f"{type(head).__name__}: strides={head.anchors.strides} in the model's YAML are not those of the maps: "
                f"one of {m.shape[3]} instead of {wanted[1]} columns for an image of {image.shape[3]}"
            )


def _new(cls: type, cfg=None, *_, **__):
    """Make a ``DetectorModel`` where Ultralytics' own class is asked for one: ``YOLO("...yaml")``, its own trainer."""
    if cls is tasks.DetectionModel and cfg is not None:
        cfg = cfg if isinstance(cfg, dict) else tasks.yaml_model_load(cfg)
        cls = DetectorModel if is_detector(cfg) else cls
    return object.__new__(cls)


tasks.DetectionModel.__new__ = _new
torch.serialization.add_safe_globals([DetectorModel, *_HELD])
