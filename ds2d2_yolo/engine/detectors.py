"""What RetinaNet and Faster R-CNN need of a trainer: their model class, weights to start from, what stays frozen."""

from __future__ import annotations

from pathlib import Path

from torch import nn
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER, RANK
from ultralytics.utils.torch_utils import unwrap_model

from ds2d2_yolo.detectors.registry import DetectorModel, is_detector
from ds2d2_yolo.detectors.weights import check_backbone, frozen_layers, load_weights
from ds2d2_yolo.errors import UserError

UNREAD = ("box", "cls", "dfl", "cls_pw", "iou")  # what Ultralytics' heads and NMS alone read
PRETRAINED = {"frozen_bn": True, "frozen_stages": 2}  # what auto means for a backbone that starts from weights


class Detectors:
    """Lets an Ultralytics trainer build and train this package's own detectors."""

    unread = UNREAD

    def get_model(self, cfg: dict, weights: nn.Module | bool | None = None, verbose: bool = True) -> nn.Module:
        """Build the model that ``cfg`` describes, from a checkpoint's weights or, None, from ``backbone_weights``.

        ``weights=False`` asks for neither.

        Raises:
            UserError: Its parts do not fit together, or the weights cannot be had.
        """
        if not is_detector(cfg):
            return super().get_model(cfg, weights, verbose)
        model = DetectorModel(cfg, self.data["channels"], self.data["nc"], verbose and RANK in {-1, 0})
        self.set_model_names_for_load(model)
        if weights:
            given = self.args.pretrained
            check_backbone(model, weights, given if isinstance(given, (str, Path)) else self.args.model)
            model.load(weights)
        elif weights is None:
            load_weights(model, self.args.backbone_weights)
        model.freeze_statistics(self._frozen("frozen_bn"))
        return model

    def _frozen(self, setting: str) -> int | bool:
        value = getattr(self.args, setting)
        if value != "auto":
            return value
        return PRETRAINED[setting] if self.args.backbone_weights != "none" else 0

    def set_model_attributes(self) -> None:
        """Attach what Ultralytics attaches, and name the stages to freeze, which it freezes next."""
        super().set_model_attributes()
        model = unwrap_model(self.model)
        model = getattr(model, "student_model", model)
        frozen = self.freeze_list(model)
        if not isinstance(model, DetectorModel):
            return
        unused = [key for key in self.unread if getattr(self.args, key) != DEFAULT_CFG_DICT[key]]
        if unused and RANK in {-1, 0}:
            LOGGER.warning(
                f"{', '.join(unused)}: without effect here; the model's YAML holds this detector's gains and NMS"
            )
        self.args.freeze = frozen

    def freeze_list(self, model: nn.Module) -> list[int | str]:
        """Return numbers and names of a model's layers that stay as they are: ``freeze``, and the backbone's stages.

        Raises:
            UserError: One of those in ``freeze`` is not there.
        """
        given = self.args.freeze
        given = list(range(given)) if isinstance(given, int) else list(given or [])
        known = [f"{name}." for name, _ in model.named_modules()]
        asked = given if isinstance(self.args.freeze, list) else []
        if unknown := [layer for layer in asked if not any(f"model.{layer}." in name for name in known)]:
            part = next((name for name in known if name.count(".") > 2), "model.0.").removeprefix("model.")[:-1]
            there = f"there are 0 to {len(model.model) - 1}, and parts of them by name, such as {part}"
            raise UserError(f"freeze={self.args.freeze}: the model has no layer {unknown[0]}; {there}")
        if isinstance(model, DetectorModel) and (stages := self._frozen("frozen_stages")):
            given += frozen_layers(model, stages)
        return given

    def _model_train(self) -> None:
        """Begin an epoch, with the statistics of what is frozen as they are.

        Ultralytics looks for ``model.1.body.bn1.`` in the names of modules, which end without a dot.
        """
        super()._model_train()
        for name, module in self.model.named_modules():
            if isinstance(module, nn.BatchNorm2d) and any(f in f"{name}." for f in self.freeze_layer_names):
                module.eval()

    def _setup_train(self) -> None:
        """Set up as Ultralytics does, without a line for each frozen layer, and keep ``freeze`` as it was given."""
        given = self.args.freeze
        LOGGER.addFilter(_no_freezing)
        try:
            super()._setup_train()
        finally:
            LOGGER.removeFilter(_no_freezing)
            self.args.freeze = given
        student = getattr(unwrap_model(self.model), "student_model", unwrap_model(self.model))
        learn = [p.requires_grad for name, p in student.named_parameters() if ".dfl" not in name]
        if not all(learn) and RANK in {-1, 0}:
            LOGGER.info(f"{len(learn) - sum(learn)} of {len(learn)} parameter tensors are frozen")


def _no_freezing(record) -> bool:
    return not record.getMessage().startswith("Freezing layer")
