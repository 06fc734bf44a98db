import pytest
import torch
from torch import nn

from ds2d2_yolo.detectors.modules import FPN, IMAGENET_MEAN, IMAGENET_STD, RESNETS, Normalize, ResNet
from ds2d2_yolo.errors import UserError


def statistics(net):
    return [b.clone() for name, b in net.named_buffers() if "running" in name]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_normalize_each_channel(channels):
    image = torch.rand(2, channels, 5, 6)
    mean = {1: [sum(IMAGENET_MEAN) / 3]}.get(channels, [*IMAGENET_MEAN, sum(IMAGENET_MEAN) / 3])
    std = {1: [sum(IMAGENET_STD) / 3]}.get(channels, [*IMAGENET_STD, sum(IMAGENET_STD) / 3])
    out = Normalize(channels)(image)
    assert out.shape == image.shape
    for c in range(channels):
        torch.testing.assert_close(out[:, c], (image[:, c] - mean[c]) / std[c])


def test_normalize_takes_the_channels_of_the_layer_before_and_other_constants():
    image = torch.rand(1, 3, 4, 4)
    torch.testing.assert_close(Normalize([3], mean=(0.5,) * 3, std=(0.25,) * 3)(image), (image - 0.5) * 4)
    assert not Normalize(3).state_dict()  # constants are no weights


def test_resnet_returns_the_stages_asked_for_at_their_strides():
    image = torch.zeros(1, 3, 64, 96)
    for stages, strides, channels in (
        ((1, 2, 3, 4), (4, 8, 16, 32), (64, 128, 256, 512)),
        ((2, 4), (8, 32), (128, 512)),
    ):
        with torch.no_grad():
            maps = ResNet("resnet10", 3, stages).eval()(image)
        assert [tuple(m.shape) for m in maps] == [
            (1, c, 64 // s, 96 // s) for s, c in zip(strides, channels, strict=True)
        ]


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_resnet_takes_any_number_of_channels(channels):
    with torch.no_grad():
        assert ResNet("resnet10", [channels]).eval()(torch.zeros(1, channels, 32, 32))[-1].shape == (1, 512, 1, 1)


def test_the_shipped_backbones_are_torchvisions():
    assert {"resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "resnext101_64x4d"} <= RESNETS.keys()
    with torch.device("meta"):
        net = ResNet("resnext101_64x4d", 3)
        assert net.body.layer3[22].conv2.groups == 64
        assert [tuple(m.shape) for m in net(torch.zeros(1, 3, 64, 64))] == [
            (1, 512, 8, 8),
            (1, 1024, 4, 4),
            (1, 2048, 2, 2),
        ]


def test_unknown_backbone():
    with pytest.raises(UserError, match="unknown backbone 'resnet19'; known: resnet18, "):
        ResNet("resnet19")


def test_statistics_follow_the_data_unless_frozen():
    net, image = ResNet("resnet10"), torch.rand(2, 3, 64, 64)
    before = statistics(net)
    with torch.no_grad():
        net.train()(image)
    moved = statistics(net)
    assert all(not torch.equal(a, b) for a, b in zip(before, moved, strict=True))
    net.frozen_statistics = True
    with torch.no_grad():
        net.train()(image)
    assert all(torch.equal(a, b) for a, b in zip(moved, statistics(net), strict=True))
    assert net.training and net.body.layer1.training  # only BatchNorm stands still
    net.frozen_statistics = False
    assert all(m.training for m in net.train().modules() if isinstance(m, nn.BatchNorm2d))


def test_frozen_statistics_leave_the_affine_weights_trainable():
    net = ResNet("resnet10")
    net.frozen_statistics = True
    sum(m.sum() for m in net.train()(torch.rand(1, 3, 32, 32))).backward()
    assert net.body.bn1.weight.grad.abs().sum() > 0


def test_fpn_with_maps_of_other_channels_names_both_lists():
    with pytest.raises(UserError, match=r"maps of \[8, 16, 32\] channels, its backbone has \[8, 16, 64\]"):
        FPN([8, 16, 32], 4)([torch.zeros(1, c, 4, 4) for c in (8, 16, 64)])
    with pytest.raises(UserError, match=r"\[8, 16\] channels, its backbone has \[8, 16, 32\]"):
        FPN([8, 16], 4)([torch.zeros(1, c, 4, 4) for c in (8, 16, 32)])


def test_unknown_extra_levels():
    with pytest.raises(UserError, match="unknown extra levels 'p8' of the FPN; known: p6p7, p6p7_c5, pool"):
        FPN([8], 4, "p8")


@pytest.mark.parametrize("extra, sizes", [("p6p7", [12, 6, 3, 2]), ("p6p7_c5", [12, 6, 3, 2]), ("pool", [12, 6, 3])])
@pytest.mark.parametrize("out", [4, 8])  # 8: as many as the last map has, where torchvision would take p6p7_c5 for p6p7
def test_extra_levels(extra, sizes, out):
    fpn, maps = FPN([6, 8], out, extra), [torch.rand(1, 6, 12, 12), torch.rand(1, 8, 6, 6)]
    with torch.no_grad():
        levels = fpn(maps)
        assert [tuple(m.shape) for m in levels] == [(1, out, s, s) for s in sizes]
        if extra == "pool":
            assert torch.equal(levels[2], levels[1][..., ::2, ::2])
            return
        source = {"p6p7": levels[1], "p6p7_c5": maps[1]}[extra]
        p6 = fpn.fpn.extra_blocks.p6(source)
        torch.testing.assert_close(levels[2], p6)
        torch.testing.assert_close(levels[3], fpn.fpn.extra_blocks.p7(p6.relu()))
