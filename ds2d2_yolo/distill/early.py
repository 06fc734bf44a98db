"""Gradients taken as soon as a loss is known, so that what it kept for them is free before the next loss begins."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import reduce

import torch
from torch import Tensor, nn

_GUESS = 2.0**10  # boost of a loss of unknown size
_LESS = 2.0**4


class EarlyGradients:
    """A student's feature maps, raw and adapted, cut off from its graph for losses that are differentiated at once.

    Frozen heads keep as much for their backward pass as a student does; of several, only one then lives at a time, and
    one set of gradients is all that stays of them. Losses come in groups that share a graph: functions of this object
    that return named float32 scalars of ``raw`` and ``adapted``.

    Args:
        maps: The student's maps, each ``(B, C, H, W)``.
        adapt: Makes the adapted maps of them.
        parameters: What ``adapt`` trains.
        boost: Factor on a weighted loss while half-precision layers are passed, so that small gradients are not
            flushed to zero; it is taken out again in float32.

    Attributes:
        raw: The maps, without a past.
        adapted: The adapted ones, likewise.
    """

    def __init__(
        self,
        maps: list[Tensor],
        adapt: Callable[[list[Tensor]], list[Tensor]],
        parameters: Iterable[nn.Parameter] = (),
        boost: float = 1.0,
    ):
        trained = [p for p in parameters if p.requires_grad]
        self.raw = [m.detach().requires_grad_(m.requires_grad) for m in maps]
        self._outputs = adapt(self.raw)
        self.adapted = [m.detach().requires_grad_(m.requires_grad) for m in self._outputs]
        self._leaves = [*self.raw, *self.adapted]
        self._inside = [*(m for m in self.raw if m.requires_grad), *trained]
        self._outside = [*(m for m in maps if m.requires_grad), *trained]
        self._boost = boost if any(m.dtype == torch.float16 for m in self._leaves) else 1.0

    def separate(
        self,
        groups: list[Callable[[EarlyGradients], dict[str, Tensor]]],
        factors: dict[str, float | None] | None = None,
    ) -> dict[str, Tensor]:
        """Return every loss as a scalar whose gradient at maps and parameters is computed already.

        A loss by itself may be a hundred times what it is once it is weighted, and the boost is as much less: by its
        factor, or where that is not known yet by a guess, and again until half precision holds the gradient.
        """
        known = {}
        for group in groups:
            found = group(self)
            for name, loss in found.items():
                factor = (factors or {}).get(name)
                boost = min(self._boost, _GUESS if factor is None else max(_power_of_two(self._boost * factor), 1.0))
                grads = self._alone(loss, boost)
                while boost > 1 and not all(g.isfinite().all() for g in grads if g is not None):
                    boost = max(boost / _LESS, 1.0)
                    grads = self._alone(loss, boost)
                known[name] = _Known.apply(loss.detach(), grads, *self._outside)
        return known

    def _alone(self, loss: Tensor, boost: float) -> list[Tensor | None]:
        return self._passed(self._add([None] * len(self._leaves), loss * boost, keep=True), boost)

    def together(
        self, groups: list[Callable[[EarlyGradients], dict[str, Tensor]]], factors: dict[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the losses' sum, each times its factor, with one known gradient, and the losses by themselves.

        Losses without a factor are left out of both.
        """
        sums, values = [None] * len(self._leaves), {}
        for group in groups:
            found = {name: loss for name, loss in group(self).items() if name in factors}
            sums = self._add(sums, sum(factors[name] * loss for name, loss in found.items()) * self._boost)
            values |= {name: loss.detach() for name, loss in found.items()}
        total = sum(factors[name] * value for name, value in values.items())
        return _Known.apply(total, self._passed(sums, self._boost), *self._outside), values

    def _add(self, sums: list[Tensor | None], loss: Tensor, keep: bool = False) -> list[Tensor | None]:
        """Add a loss's gradient at the leaves to what is there; with ``keep`` its graph serves another loss."""
        wanted = [i for i, leaf in enumerate(self._leaves) if leaf.requires_grad]
        if not (wanted and loss.requires_grad):
            return sums
        grads = _gradients([loss], [self._leaves[i] for i in wanted], None, keep)
        for place, i in enumerate(wanted):
            if (new := grads[place]) is not None:
                grads[place], new = None, _at_least_float32(new)
                sums[i] = new if sums[i] is None else sums[i] + new
        return sums

    def _passed(self, sums: list[Tensor | None], boost: float) -> list[Tensor | None]:
        """Hand these gradients at the leaves on to the student's maps and the parameters, and take ``boost`` out."""
        at_raw, at_adapted = sums[: len(self.raw)], sums[len(self.raw) :]
        pairs = [(m, s.to(m.dtype)) for m, s in zip(self._outputs, at_adapted, strict=True) if s is not None]
        passed = [None] * len(self._inside)
        if pairs:
            passed = _gradients([m for m, _ in pairs], self._inside, [s for _, s in pairs], True)
        direct = [s for s, m in zip(at_raw, self.raw, strict=True) if m.requires_grad]
        grads = []
        for i, g in enumerate(passed):
            parts = [part for part in (g, direct[i] if i < len(direct) else None) if part is not None]
            total = reduce(torch.add, map(_at_least_float32, parts)) if parts else None
            grads.append(total if total is None or boost == 1 else total / boost)
        return grads


def _power_of_two(x: float) -> float:
    """The largest one below ``x``, which half precision multiplies with without rounding."""
    return 2.0 ** (math.frexp(x)[1] - 1)


def settled(loss: Tensor, parameters: Iterable[nn.Parameter], boost: float = 1.0) -> Tensor:
    """Return a scalar loss whose gradient at ``parameters`` is computed already; ``boost`` as in ``EarlyGradients``."""
    trained = [p for p in parameters if p.requires_grad]
    grads = _gradients([loss * boost], trained, None, False)
    return _Known.apply(loss.detach(), [None if g is None else _at_least_float32(g) / boost for g in grads], *trained)


def _gradients(
    outputs: list[Tensor], inputs: list[Tensor], outer: list[Tensor] | None, keep: bool
) -> list[Tensor | None]:
    with torch.autocast(inputs[0].device.type, enabled=False):  # it would turn float32 products into half precision
        return list(torch.autograd.grad(outputs, inputs, outer, retain_graph=keep, allow_unused=True))


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _Known(torch.autograd.Function):
    """A scalar with the gradients it is to have."""

    @staticmethod
    def forward(ctx, value: Tensor, grads: list[Tensor | None], *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*grads)  # let go after the backward pass, whoever still holds the loss
        ctx.dtypes = [x.dtype for x in inputs]
        return value.clone()

    @staticmethod
    def backward(ctx, outer: Tensor):
        """Scale them; in half precision the outer factor is what keeps them from vanishing, so it comes first."""
        pairs = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return None, None, *(None if g is None else (g * outer).to(dtype) for g, dtype in pairs)
