"""Rows of a class in RetinaNet's and Faster R-CNN's last layers, carried over by its name as YOLO's are."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetClassificationHead
from ultralytics.utils import LOGGER


def remap(
    state: dict[str, Tensor], model: nn.Module, given: dict[str, Tensor], source: nn.Module, verbose: bool
) -> int:
    """Fill the class rows of ``state`` from those of the same name, and take what was used out of ``given``.

    Args:
        state: The model's state, changed in place.
        model: The detector to fill; ``names`` are those of the data.
        given: The state of ``source``.
        source: The detector that the weights come from.
        verbose: Say how many classes were found.

    Returns:
        The number of tensors filled; 0 where the classes are the same, or none has the same name.
    """
    names = [getattr(m, "names", None) for m in (model, source)]
    if not all(isinstance(n, dict) for n in names) or any(all(str(k) == str(v) for k, v in n.items()) for n in names):
        return 0  # not named: by number
    own, theirs = ([_plain(n[k]) for k in sorted(n)] for n in names)
    places = {name: k for k, name in enumerate(theirs)}
    pairs = [(k, places[name]) for k, name in enumerate(own) if name in places]
    if not pairs or own == theirs:
        return 0
    filled = 0
    for key, anchors, background in _layers(model):
        if key not in given:
            continue
        rows, others = (_by_class(t[key], anchors, len(n) + background) for t, n in ((state, own), (given, theirs)))
        if rows is None or others is None or rows.shape[2:] != others.shape[2:]:
            continue
        for mine, its in [(-1, -1)] * background + pairs:
            rows[:, mine + background] = others[:, its + background]
        del given[key]
        filled += 1
    if verbose and filled:
        LOGGER.info(f"{len(pairs)} of {len(own)} classes start from the weights of the same name, and the others anew")
    return filled


def _plain(name) -> str:
    return str(name).strip().lower()


def _layers(model: nn.Module):
    """Keys of tensors with rows for every class, the anchors that a class has rows for, and rows before the first."""
    for name, module in model.named_modules():
        layers = {}
        if isinstance(module, RetinaNetClassificationHead):
            layers = {"cls_logits": (module.num_anchors, 0)}
        elif isinstance(module, FastRCNNPredictor):
            layers = {"cls_score": (1, 1), "bbox_pred": (1, 1)}
        for layer, (anchors, background) in layers.items():
            for part in ("weight", "bias"):
                yield f"{name}.{layer}.{part}", anchors, background


def _by_class(tensor: Tensor, anchors: int, classes: int) -> Tensor | None:
    """A view ``(anchors, classes, ...)``; ``None`` where the rows are for other anchors."""
    # Not ``view``: the rest may lie in memory in another order (channels_last)
    return tensor.unflatten(0, (anchors, classes, -1)) if len(tensor) % (anchors * classes) == 0 else None
