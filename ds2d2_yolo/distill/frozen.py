"""Convolutions of what is frozen: they keep nothing of their input, and cast their weights once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class FrozenConv2d(nn.Conv2d):
    """A convolution that saves its weight alone, as long as that is frozen: PyTorch's own saves its input as well.

    Under autocast the weight in half precision is kept, too: PyTorch keeps that of trained weights alone, and casts
    others anew in every pass, a launch each on a GPU.
    """

    _cast: tuple | None = None  # type, versions, weight and bias

    @classmethod
    def replace_in(cls, module: nn.Module) -> nn.Module:
        """Turn the plain convolutions inside ``module`` into these, in place, and return it."""
        for m in module.modules():
            if type(m) is nn.Conv2d and m.padding_mode == "zeros" and not isinstance(m.padding, str):
                m.__class__ = cls  # the same parameters and buffers; only what is saved differs
        return module

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if weight.requires_grad or (bias is not None and bias.requires_grad):
            return super()._conv_forward(input, weight, bias)
        weight, bias = self._as_autocast_would(weight, bias)
        if not torch.is_grad_enabled():
            return super()._conv_forward(input, weight, bias)
        return _InputGradient.apply(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def _as_autocast_would(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        kind = weight.device.type
        if not torch.is_autocast_enabled(kind) or weight.dtype != torch.float32 or weight.is_inference():
            return weight, bias
        known = [(id(x), x._version) for x in (weight, bias) if x is not None]
        key = torch.get_autocast_dtype(kind), known, torch.is_inference_mode_enabled()  # autograd takes none of its
        if self._cast is None or self._cast[0] != key:
            self._cast = key, weight.detach().to(key[0]), None if bias is None else bias.detach().to(key[0])
        return self._cast[1:]

    def _apply(self, fn, recurse: bool = True):
        self._cast = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict:
        """Leave what was cast out of copies and checkpoints."""
        return {key: value for key, value in super().__getstate__().items() if key != "_cast"}


class _InputGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input: Tensor, weight: Tensor, bias: Tensor | None, *how) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.dtype, ctx.how = input.shape, input.dtype, how
        return F.conv2d(input, weight, bias, *how)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        # Under autocast the forward pass was one in the gradient's type, whatever map and weight were
        weight = ctx.saved_tensors[0].to(gradient.dtype)
        stride, padding, dilation, groups = ctx.how
        geometry = zip(ctx.shape[2:], gradient.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
        rest = [n - ((m - 1) * s - 2 * p + d * (k - 1) + 1) for n, m, k, s, p, d in geometry]  # cells a stride leaves
        # PyTorch's own backward operation would have to be given an input, if only for its shape
        with torch.autocast(gradient.device.type, enabled=False):
            found = F.conv_transpose2d(gradient, weight, None, stride, padding, rest, groups, dilation)
        return found.to(ctx.dtype), *[None] * (2 + len(ctx.how))
