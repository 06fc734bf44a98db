"""What stands before the heads: input normalisation, ResNet and FPN, as layers of an Ultralytics model YAML."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool, LastLevelP6P7

from ds2d2_yolo.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# torchvision's own, and a small one of the same blocks for where a ResNet-18 is too much
RESNETS = {
    name: getattr(resnet, name)
    for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
    + ("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2")
} | {"resnet10": partial(resnet.ResNet, resnet.BasicBlock, [1, 1, 1, 1])}
STAGES = (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))


def _channels(given: int | list[int]) -> int:
    # In a model YAML `ch` stands for the list of all layers' output channels so far
    return given[-1] if isinstance(given, list) else given


class Normalize(nn.Module):
    """Brings images ``(B, C, H, W)`` in 0-1 RGB to the statistics that backbones are trained with.

    Channels beyond the third, and a single one, get the mean of the three.
    """

    def __init__(self, channels: int | list[int] = 3, mean=IMAGENET_MEAN, std=IMAGENET_STD):
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            values = torch.tensor(values, dtype=torch.float32)
            n, average = _channels(channels), values.mean().reshape(1)
            values = torch.cat([values, average.expand(n - 3)]) if n >= 3 else average.expand(n)
            self.register_buffer(name, values.reshape(1, -1, 1, 1).clone(), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Return the normalised images."""
        return (image - self.mean) / self.std


class ResNet(nn.Module):
    """A torchvision ResNet without its classifier.

    Args:
        name: A key of ``RESNETS``.
        channels: Channels of the input.
        stages: Which of the stages 1 to 4 are returned (strides 4 to 32).

    Attributes:
        frozen_statistics: While set, BatchNorm keeps its running statistics also in training.
    """

    def __init__(self, name: str, channels: int | list[int] = 3, stages=(2, 3, 4)):
        super().__init__()
        if name not in RESNETS:
            raise UserError(f"unknown backbone '{name}'; known: {', '.join(RESNETS)}")
        net, n = RESNETS[name](), _channels(channels)
        if n != 3:
            net.conv1 = nn.Conv2d(n, 64, 7, stride=2, padding=3, bias=False)
        self.name = name
        self.frozen_statistics = False
        self.body = IntermediateLayerGetter(net, {f"layer{s}": str(s) for s in stages})

    def train(self, mode: bool = True):
        """Set the mode; frozen statistics stay frozen."""
        super().train(mode)
        if self.frozen_statistics:
            for m in self.modules():
                if isinstance(m, nn.BatchNorm2d):
                    m.eval()
        return self

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the stages' maps, finest first."""
        return list(self.body(x).values())


class FPN(nn.Module):
    """torchvision's feature pyramid.

    Args:
        in_channels: Channels of the backbone's maps, finest first.
        out_channels: Channels of every map returned.
        extra: Levels beyond the backbone's: ``p6p7`` (two strided convolutions on P5; RetinaNet), ``p6p7_c5`` (the same
            on the backbone's last map) or ``pool`` (P5 subsampled; Faster R-CNN).
        norm: Put a BatchNorm behind each convolution.
    """

    def __init__(self, in_channels: list[int], out_channels: int = 256, extra: str = "p6p7", norm: bool = False):
        super().__init__()
        blocks = {
            "p6p7": lambda: LastLevelP6P7(out_channels, out_channels),
            "p6p7_c5": lambda: LastLevelP6P7(in_channels[-1], out_channels),
            "pool": LastLevelMaxPool,
        }
        if extra not in blocks:
            raise UserError(f"unknown extra levels '{extra}' of the FPN; known: {', '.join(blocks)}")
        self.in_channels = list(in_channels)
        norm_layer = nn.BatchNorm2d if norm else None
        self.fpn = FeaturePyramidNetwork(self.in_channels, out_channels, blocks[extra](), norm_layer)
        if extra == "p6p7_c5":
            self.fpn.extra_blocks.use_P5 = False  # torchvision guesses from the channels

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return one map a level, finest first.

        Raises:
            UserError: The backbone's maps are not those that the YAML announced.
        """
        if not torch.jit.is_tracing() and (got := [m.shape[1] for m in maps]) != self.in_channels:
            raise UserError(
                f"the model's YAML gives the FPN maps of {self.in_channels} channels, its backbone has {got}"
            )
        return list(self.fpn(OrderedDict((str(i), m) for i, m in enumerate(maps))).values())
