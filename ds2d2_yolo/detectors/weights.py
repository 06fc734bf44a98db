"""Weights to start from: torchvision's for ImageNet by name, or a local file of torchvision's ResNets and detectors."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights
from ultralytics.utils import LOGGER, colorstr

from ds2d2_yolo.detectors.modules import FPN, STAGES, ResNet
from ds2d2_yolo.errors import UserError
from ds2d2_yolo.restricted import Refusal, load_tensors

_TIMEOUT = 20  # seconds without an answer after which there is no network
_CLASSIFIER = ("fc.",)
_COUNTERS = ("num_batches_tracked", "total_ops", "total_params")  # the latter are left by a count of operations


def load_weights(model: nn.Module, source: str) -> None:
    """Load weights into a ``DetectorModel``'s backbone or, from the file of a whole detector, into all of it.

    Args:
        model: The model; tensors of another shape (another number of classes) keep their fresh values.
        source: ``none``, ``imagenet`` (torchvision's first ImageNet weights), the name of other weights of torchvision
            for this ResNet (``IMAGENET1K_V2``), or the path of a state dict of torchvision's ResNet or detector.

    Raises:
        UserError: The weights cannot be had, or are not for this model.
    """
    if source == "none":
        return
    path = Path(source)
    state = _read(path) if path.suffix or path.is_file() else _fetch(_layer(model, ResNet).name, source)
    mapped = _renamed(model, state)
    own = model.state_dict()
    if (first := first_convolution(own)) in mapped:
        mapped[first] = for_channels(mapped[first], own[first].shape[1])
    fitting = {name: value for name, value in mapped.items() if name in own and own[name].shape == value.shape}
    backbone = _backbone(own)
    if missing := sorted(backbone - set(fitting)):
        raise UserError(
            f"backbone_weights={source} does not fit {_layer(model, ResNet).name} ({len(missing)} of "
            f"{len(backbone)} tensors are missing or of another shape, first {missing[0]})"
        )
    if deeper := _deeper(mapped, backbone):
        raise UserError(
            f"backbone_weights={source} is of another backbone than {_layer(model, ResNet).name}, deeper perhaps "
            f"({len(deeper)} tensors have no place, first {deeper[0]})"
        )
    model.load_state_dict(fitting, strict=False)
    left = sorted(name for name in mapped if name in own and name not in fitting)
    other = f"; of another shape and left fresh: {', '.join(left)}" if left else ""
    LOGGER.info(f"{colorstr('DS2D2:')} {len(fitting)} of {len(own)} tensors from {source}{other}")


def check_backbone(model: nn.Module, weights: nn.Module, source: str) -> None:
    """Refuse weights of another backbone: what fits by chance would be mixed with fresh tensors, and frozen.

    Args:
        model: The ``DetectorModel`` that is to start from them.
        weights: The model they are of.
        source: What the user calls it.

    Raises:
        UserError: Names both.
    """
    own, given = ({n: v for n, v in m.state_dict().items() if ".body." in n} for m in (model, weights))
    first = first_convolution(own)  # may be of other channels
    differ = [n for n in _backbone(own) if n not in given or (n != first and given[n].shape != own[n].shape)]
    if not differ and not _deeper(given, _backbone(own)):
        return
    theirs = next((m.name for m in weights.modules() if isinstance(m, ResNet)), "no ResNet")
    raise UserError(
        f"'{source}' brings the weights of {theirs}, and this model's backbone is {_layer(model, ResNet).name}: start "
        "it from backbone_weights=, without pretrained=, or from a teacher of its family, with inherit=True"
    )


def frozen_layers(model: nn.Module, stages: int) -> list[str]:
    """Return the first ``stages`` of stem, layer1 .. layer4 as Ultralytics' ``freeze`` wants them."""
    place = next(i for i, m in enumerate(model.model) if isinstance(m, ResNet))
    return [f"{place}.body.{name}" for stage in STAGES[:stages] for name in stage]


def _backbone(state: Iterable[str]) -> set[str]:
    return {name for name in state if ".body." in name and not name.endswith(_COUNTERS)}


def _deeper(given: Iterable[str], own: set[str]) -> list[str]:
    """Names that are ``given`` in the stages of ``own`` and not there: of a ResNet-34's a ResNet-18 has the first."""
    stages = {_stage(name) for name in own}
    return sorted(n for n in _backbone(given) if n not in own and _stage(n) in stages)


def _stage(name: str) -> str:
    return name.partition(".body.")[2].partition(".")[0]


def _layer(model: nn.Module, kind: type) -> nn.Module:
    return next(m for m in model.model if isinstance(m, kind))


def _fetch(name: str, source: str) -> dict[str, Tensor]:
    way_out = "give a local file, backbone_weights=path/to/state_dict.pth, or train from scratch: backbone_weights=none"
    try:
        known = get_model_weights(name)
    except ValueError:
        raise UserError(f"torchvision has no weights for the backbone {name}; {way_out}") from None
    wanted = "IMAGENET1K_V1" if source == "imagenet" else source
    if wanted not in known.__members__:
        names = ", ".join(["imagenet", *known.__members__])
        raise UserError(f"backbone_weights={source} is neither a file nor weights of torchvision's {name} ({names})")
    try:
        with _impatient():
            return known[wanted].get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network, a proxy's answer, a broken download
        raise UserError(f"backbone_weights={source} cannot be fetched from {known[wanted].url}; {way_out}") from error


@contextmanager
def _impatient():
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"backbone_weights={path} does not exist")
    try:
        state = load_tensors(path)
    except Refusal:
        raise
    except Exception as error:  # whatever a broken or foreign file makes the unpickler raise
        raise UserError(f"backbone_weights={path} cannot be read as a state dict of tensors") from error
    for key in ("model", "state_dict"):  # torchvision's training scripts, and others'
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise UserError(f"backbone_weights={path} is no state dict of tensors")
    return {name.removeprefix("module."): value for name, value in state.items()}


def _renamed(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict of torchvision's under the names of ``model``."""
    place = {type(m): f"model.{i}." for i, m in enumerate(model.model)}
    head = f"model.{len(model.model) - 1}."
    if not any(name.startswith("backbone.") for name in state):
        return {f"{place[ResNet]}body.{k}": v for k, v in state.items() if not k.startswith(_CLASSIFIER)}
    renamed = {}
    for name, value in state.items():
        part, _, rest = name.partition(".")
        if part == "backbone":
            renamed[(place[FPN] if rest.startswith("fpn.") else place[ResNet]) + _current_name(rest)] = value
        else:
            renamed[head + _current_name(name)] = value
    return renamed


def _current_name(name: str) -> str:
    """torchvision's first detectors called their convolutions conv.0, conv.2 ..; now these are conv.0.0, conv.1.0 ..

    Likewise the FPN's. Files saved then keep these names; torchvision renames them on loading, as is done here.
    """
    parts = name.split(".")
    if "conv" in parts and len(parts) - parts.index("conv") == 3 and parts[0] == "head":
        at = parts.index("conv") + 1
        parts[at : at + 1] = [str(int(parts[at]) // 2), "0"]
    elif name.startswith("rpn.head.conv.") and len(parts) == 4:
        parts[3:3] = ["0", "0"]
    elif name.startswith(("fpn.inner_blocks.", "fpn.layer_blocks.")) and len(parts) == 4:
        parts[3:3] = ["0"]
    return ".".join(parts)


def first_convolution(state: Iterable[str]) -> str:
    """Return the name, among a detector's, of the weight that meets the image."""
    return next(name for name in state if name.endswith("body.conv1.weight"))


def for_channels(weight: Tensor, channels: int) -> Tensor:
    """Return the first convolution for inputs of another number of channels.

    One channel gets the sum of the filters, and shares its own with those that take its place; further ones get the
    mean filter.
    """
    own = weight.shape[1]
    if channels == 1:
        return weight.sum(1, keepdim=True)
    if own == 1:
        return weight.expand(-1, channels, -1, -1) / channels
    mean = weight.mean(1, keepdim=True)
    return torch.cat([weight[:, :channels], mean.expand(-1, max(channels - own, 0), -1, -1)], 1)
