"""Convolutions of frozen heads: PyTorch's own but for what they keep."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from ds2d2_yolo.distill.amplifiers import amplifier_for
from ds2d2_yolo.distill.frozen import FrozenConv2d
from ds2d2_yolo.distill.levels import detect_head
from tests.helpers.distilling import tiny, tiny_faster_rcnn, tiny_retinanet

GEOMETRIES = {
    "1x1": {"kernel_size": 1},
    "3x3": {"kernel_size": 3, "padding": 1},
    "stride": {"kernel_size": 3, "stride": 2, "padding": 1},
    "stride and rest": {"kernel_size": 3, "stride": 4},
    "dilation": {"kernel_size": 3, "dilation": 2, "padding": 2},
    "depthwise": {"kernel_size": 3, "padding": 1, "groups": 4},
    "oblong": {"kernel_size": (1, 5), "stride": (3, 2), "padding": (0, 2), "dilation": (1, 2), "groups": 2},
    "without bias": {"kernel_size": 3, "bias": False},
}


def pair(**geometry):
    """A frozen convolution of four to eight channels, PyTorch's own and ours."""
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 8, **geometry).double().requires_grad_(False)
    return plain, FrozenConv2d.replace_in(deepcopy(plain))


def image(dtype=torch.float64, size=(9, 14)):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 4, *size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def value_and_gradient(convolution, x):
    y = convolution(x)
    outer = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    return y, torch.autograd.grad(y, x, outer)[0]


def kept(function, x):
    """Shapes of all that a function saves for its backward pass."""
    shapes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append(tuple(t.shape)) or t, lambda t: t):
        function(x)
    return shapes


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_values_and_gradients_are_pytorchs(geometry):
    plain, frozen = pair(**geometry)
    for size in ((9, 14), (10, 15), (11, 12), (12, 13)):
        for ours, theirs in zip(*(value_and_gradient(c, image(size=size)) for c in (frozen, plain)), strict=True):
            torch.testing.assert_close(ours, theirs)
    assert torch.autograd.gradcheck(frozen, image(size=(6, 7))[:1])  # small: it goes through every number


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("before", [torch.float32, None], ids=["float32 map", "half map"])
def test_under_autocast(dtype, before):
    plain, frozen = (c.float() for c in pair(kernel_size=3, stride=2, padding=1))
    found = []
    for convolution in (frozen, plain):
        with torch.autocast("cpu", dtype):
            found.append(value_and_gradient(convolution, image(before or dtype)))
    (value, gradient), (expected, expected_gradient) = found
    assert value.dtype == dtype and gradient.dtype == (before or dtype)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-2, atol=1e-2)
    assert gradient.abs().sum() > 0


def test_weights_are_cast_once_and_anew_where_they_change():
    plain, frozen = (c.float() for c in pair(kernel_size=3, padding=1))
    x = image(torch.float32)

    def agree(dtype):
        with torch.autocast("cpu", dtype):
            torch.testing.assert_close(frozen(x), plain(x))
            with torch.no_grad():
                torch.testing.assert_close(frozen(x), plain(x))
        return frozen._cast[1]

    first = agree(torch.bfloat16)
    assert first.dtype == torch.bfloat16 and agree(torch.bfloat16) is first
    assert agree(torch.float16).dtype == torch.float16
    with torch.no_grad():
        for convolution in (plain, frozen):
            convolution.weight.mul_(2)
    agree(torch.float16)
    assert deepcopy(frozen)._cast is None and frozen.double()._cast is None
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(frozen(image()), plain.double()(image()))  # autocast leaves float64 alone


def test_weights_cast_in_inference_mode_are_not_those_of_a_training_step():
    frozen = FrozenConv2d.replace_in(nn.Conv2d(4, 8, 3).requires_grad_(False))
    x = image(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.inference_mode():
            frozen(x)
        (gradient,) = torch.autograd.grad(frozen(x).sum(), x)
    assert gradient.abs().sum() > 0


def test_a_backward_pass_inside_autocast_stays_in_float32():
    plain, frozen = (c.float() for c in pair(kernel_size=3))
    x = image(torch.float32)
    y = frozen(x)
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = torch.autograd.grad(y, x, torch.linspace(-1, 1, y.numel()).reshape(y.shape))
    torch.testing.assert_close(found, value_and_gradient(plain, x)[1])


def test_only_the_weight_is_kept():
    plain, frozen = pair(kernel_size=3)
    assert kept(frozen, image()) == [(8, 4, 3, 3)]
    assert (2, 4, 9, 14) in kept(plain, image())


@pytest.mark.parametrize("trained", ["weight", "bias"])
def test_one_that_is_trained_is_pytorchs_own(trained):
    plain, frozen = pair(kernel_size=3)
    grads = []
    for convolution in (plain, frozen):
        getattr(convolution, trained).requires_grad_(True)
        convolution(image()).square().sum().backward()
        grads.append(getattr(convolution, trained).grad)
    torch.testing.assert_close(*grads)


def test_what_it_does_not_know_is_left_alone():
    class Own(nn.Conv2d):
        pass

    others = [nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), nn.Conv2d(2, 2, 3, padding="same"), Own(2, 2, 1)]
    block = FrozenConv2d.replace_in(nn.Sequential(nn.Conv2d(2, 2, 1), *others, nn.ConvTranspose2d(2, 2, 2)))
    assert [type(m) for m in block] == [FrozenConv2d, nn.Conv2d, nn.Conv2d, Own, nn.ConvTranspose2d]


@pytest.mark.parametrize("make", [tiny, tiny_retinanet, tiny_faster_rcnn])
def test_amplifiers_have_them_and_the_heads_they_are_made_of_do_not(make):
    head = detect_head(make())
    amplifier = amplifier_for(head, list(range(head.nl)))
    kinds = {type(m) for m in amplifier.head.modules() if isinstance(m, nn.Conv2d)}
    assert kinds == {FrozenConv2d}
    assert {type(m) for m in head.modules() if isinstance(m, nn.Conv2d)} == {nn.Conv2d}
