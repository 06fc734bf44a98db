"""Counts and statistics of the whole batch, whatever number of processes shares it.

Every loss is then, on average over the processes, what one process would find for all their images together.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def processes() -> int:
    """The number of processes that share a batch."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def shared(count: Tensor) -> Tensor:
    """The mean over the processes of what each has counted: a normaliser for its part of a sum. Without gradient."""
    if processes() == 1:
        return count.detach()
    total = count.detach().clone()
    dist.all_reduce(total)
    return total / processes()


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance per channel of ``x (B, C, H, W)`` over the whole batch and space, ``(1, C, 1, 1)``.

    Gradients reach the maps of every process.
    """
    if processes() == 1:
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
        return mean, variance
    mean = _Mean.apply(x.mean((0, 2, 3), keepdim=True))
    return mean, _Mean.apply((x - mean).square().mean((0, 2, 3), keepdim=True))


class _Mean(torch.autograd.Function):
    """The mean over the processes; what one's loss asks of it is asked of all."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return shared(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return shared(gradient)
