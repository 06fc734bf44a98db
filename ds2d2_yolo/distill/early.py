"""Gradients taken as soon as a loss is known, so that what it kept for them is free before the next loss begins."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def with_early_gradient(
    losses: Callable[[list[Tensor]], dict[str, Tensor]], maps: list[Tensor], boost: float = 1.0
) -> dict[str, Tensor]:
    """Return ``losses(maps)``, scalars whose gradients at the maps are computed already.

    Frozen heads keep as much for their backward pass as a student does; of several, only one then lives at a time. The
    scalars behave as ever in a further backward pass, but their gradients reach nothing except ``maps``.

    Args:
        losses: Makes named float32 scalars of the maps.
        maps: Feature maps, each ``(B, C, H, W)``.
        boost: Factor on a loss while half-precision heads are passed, so that small gradients are not flushed to
            zero; it is taken out again in float32.
    """
    leaves = [m.detach().requires_grad_(m.requires_grad) for m in maps]
    found = losses(leaves)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    kept, last = [m for m in maps if m.requires_grad], list(found)[-1:]
    boost = boost if any(m.dtype == torch.float16 for m in maps) else 1.0
    known = {}
    for name, loss in found.items():
        if not (wanted and loss.requires_grad):
            known[name] = loss.detach()
            continue
        grads = torch.autograd.grad(loss * boost, wanted, retain_graph=[name] != last, allow_unused=True)
        grads = [None if g is None else g.float() / boost if boost != 1 else g for g in grads]
        known[name] = _Known.apply(loss.detach(), grads, *kept)
    return known


class _Known(torch.autograd.Function):
    """A scalar with the gradients it is to have."""

    @staticmethod
    def forward(ctx, value: Tensor, grads: list[Tensor | None], *maps: Tensor) -> Tensor:
        ctx.grads, ctx.dtypes = grads, [m.dtype for m in maps]
        return value.clone()

    @staticmethod
    def backward(ctx, outer: Tensor):
        """Scale them; in half precision the outer factor is what keeps them from vanishing, so it comes first."""
        pairs = zip(ctx.grads, ctx.dtypes, strict=True)
        return None, None, *(None if g is None else (g * outer).to(dtype) for g, dtype in pairs)
