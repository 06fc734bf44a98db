"""The four terms' weights: switches, schedule and balance against the detection loss, in one place."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ds2d2_yolo.method.shared import shared

TERMS = ("ex_low", "ex_high", "im_full", "im_high")
LIMIT = 100.0  # a term's scale never grows beyond this many times its first value: a vanished term stays small
STEP = 4.0  # nor does one measurement count for more than this many times what the scale was, or less than so little
MOST = 4.0  # nor is room made in a step for terms that pull more than this many times as hard as the labels
ROUNDING = 1e-10  # a term of standardised features that is smaller than this is no gap but rounding


class Balance:
    """Weighs named terms.

    With ``mode="gradient"`` the weight of a term is the norm of its gradient at the student's neck relative to that of
    the detection loss: 0.5 lets it pull half as hard as the labels, whatever the head, the channels or the data. With
    ``"fixed"`` the weight multiplies the term (DS2D2 eq. of the total loss).

    Args:
        weights: Weight by term; 0 switches a term off.
        mode: ``gradient`` or ``fixed``.
        warmup: Epochs of linear rise from 0.
        final: Factor at the end of training, along a cosine from 1.
    """

    def __init__(self, weights: dict[str, float], mode: str = "gradient", warmup: float = 0.0, final: float = 1.0):
        self.weights, self.mode, self.warmup, self.final = weights, mode, warmup, final
        self.scales: dict[str, float] = {}
        self._norms: dict[str, float] = {}
        self._first: dict[str, float] = {}
        self.factor = 1.0

    @property
    def active(self) -> list[str]:
        """Names of the terms that are switched on."""
        return [name for name, weight in self.weights.items() if weight > 0]

    def state(self) -> dict[str, dict[str, float]]:
        """Return what was measured, as plain numbers, for a checkpoint."""
        return {"scales": dict(self.scales), "first": dict(self._first), "norms": dict(self._norms)}

    def restore(self, state: dict[str, dict[str, float]]) -> None:
        """Go on from a ``state``."""
        self.scales, self._first, self._norms = (dict(state[key]) for key in ("scales", "first", "norms"))

    def set_progress(self, epoch: float, epochs: int) -> None:
        """Set the schedule's factor for ``epoch`` (fractions count) of ``epochs``."""
        rise = min(epoch / self.warmup, 1.0) if self.warmup > 0 else 1.0
        fall = self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(epoch / max(epochs, 1), 1.0)))
        self.factor = rise * fall

    def measure(self, detection: Tensor, terms: dict[str, Tensor], maps: list[Tensor]) -> None:
        """Measure gradient norms at ``maps`` (the student's neck), for ``shares``, and update the scales.

        Args:
            detection: The detection loss, scalar, in the same units per image as the terms.
            terms: The active terms, scalars that still have their graph.
            maps: The student's feature maps, each ``(B, C, H, W)``, part of that graph.
        """
        norms = torch.stack([_gradient_norm(loss, maps) for loss in (detection, *terms.values())])
        values = torch.stack([term.detach().float().to(norms.device) for term in terms.values()])
        found = shared(torch.cat([norms.square(), values]))  # every process must weigh alike
        norms, values = found[: len(norms)].sqrt().tolist(), found[len(norms) :].tolist()
        # What overflowed counts as not measured: the scales stay as they are
        reference, *others = (norm if math.isfinite(norm) else 0.0 for norm in norms)
        self._norms = {"detection": reference, **dict(zip(terms, others, strict=True))}
        for name, norm, value in zip(terms, others, values, strict=True):
            if self.mode == "gradient" and norm > 0 and reference > 0 and not abs(value) < ROUNDING:
                self._update_scale(name, reference / norm)

    def shares(self) -> dict[str, float]:
        """Return every loss's share of the gradient at the neck, by the last measurement and the weights of now."""
        if not self.active:
            return {"detection": 1.0}
        pulls = {k: v * (1.0 if k == "detection" else self.multiplier(k)) for k, v in self._norms.items()}
        total = sum(pulls.values())
        return {name: pull / total if total > 0 else 0.0 for name, pull in pulls.items()}

    def room(self) -> float:
        """Return how many times the labels' gradient the sum of all is in the student's layers; 1 where not measured.

        With the pulls at the neck, and an angle of 60 degrees between labels and terms, by which the labels' step is
        about as long as in plain training (benchmarks/parameters.py).
        """
        if self.mode == "gradient":  # as meant: what a single batch says may be far off
            pull = self.factor * sum(weight for name, weight in self.weights.items() if name in self._norms)
        else:
            part = self.shares().get("detection", 1.0)
            pull = min(1 / part - 1, MOST) if part > 0 else 0.0
        return math.sqrt(1 + pull + pull**2)

    def _update_scale(self, name: str, ratio: float) -> None:
        first = self._first.setdefault(name, ratio)
        scale = self.scales.get(name, ratio)
        # Half way between orders of magnitude: labels pull many times harder where a batch has few objects, as their
        # loss is divided by these, and a mean of such ratios would be that of the odd batches
        self.scales[name] = math.sqrt(scale * max(min(ratio, LIMIT * first, STEP * scale), scale / STEP))

    def size(self, name: str) -> float | None:
        """Return what a term is multiplied with where nothing fades; None where it has not been measured yet."""
        scale = self.scales.get(name) if self.mode == "gradient" else 1.0
        return None if scale is None else self.weights[name] * scale

    def multiplier(self, name: str) -> float:
        """Return what a term is multiplied with now."""
        return (self.size(name) or 0.0) * self.factor

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """Return the weighted sum of the terms."""
        return sum(self.multiplier(name) * term for name, term in terms.items())


def _gradient_norm(loss: Tensor, maps: list[Tensor]) -> Tensor:
    # Half-precision heads would flush gradients this small to zero; the factor is taken out again.
    boost = 2.0**10 if any(m.dtype == torch.float16 for m in maps) else 1.0
    maps = [m for m in maps if m.requires_grad]  # none below a frozen neck
    if not (maps and loss.requires_grad):
        return loss.new_zeros((), dtype=torch.float32)
    grads = torch.autograd.grad(loss * boost, maps, retain_graph=True, allow_unused=True)
    squares = [g.float().pow(2).sum() for g in grads if g is not None]
    return torch.stack(squares).sum().sqrt() / boost if squares else loss.new_zeros((), dtype=torch.float32)
