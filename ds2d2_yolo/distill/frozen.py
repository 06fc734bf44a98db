"""Convolutions of frozen heads: they keep nothing of their input for the backward pass, for no weight asks for it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class FrozenConv2d(nn.Conv2d):
    """A convolution that saves its weight alone, as long as that is frozen: PyTorch's own saves its input as well."""

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
        return _InputGradient.apply(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)


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
