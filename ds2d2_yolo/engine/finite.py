"""Steps that are not finite change nothing: neither weights nor statistics nor the epoch's means."""

from __future__ import annotations

import torch
from torch import Tensor
from ultralytics.utils import LOGGER
from ultralytics.utils.torch_utils import unwrap_model

from ds2d2_yolo.errors import UserError
from ds2d2_yolo.method.shared import shared

PATIENCE = 2  # steps in a row: few images make an epoch of a single step, and one batch alone ends no run


class FiniteSteps:
    """Mixin of a trainer: leaves out optimizer steps whose gradient is NaN or infinite, and says so once an epoch.

    Ultralytics lets such a step destroy the weights, and goes back to the last checkpoint when it notices.
    With a loss scale (float16) PyTorch's own scaler leaves the step out; the rest is the same.
    """

    _steps = _skipped = 0  # of this epoch
    _in_a_row = 0  # that were skipped, also over the ends of epochs
    _means: dict[str, Tensor] | None = None
    _culprits: frozenset[str] = frozenset()  # losses that were not finite in these steps
    _statistics: dict[str, Tensor] | None = None  # BatchNorm's, which change in place; of this epoch

    @property
    def tloss(self) -> dict[str, Tensor] | None:
        """The epoch's mean losses so far; what was not finite is not in them."""
        return self._means

    @tloss.setter
    def tloss(self, means: dict[str, Tensor] | None) -> None:
        if means is not None:
            before = self._means or {k: torch.zeros_like(v) for k, v in means.items()}
            means = {k: torch.where(v.isfinite(), v, before[k]) for k, v in means.items()}
        self._means = means

    def _model_train(self) -> None:
        """Begin an epoch's count."""
        super()._model_train()
        self._steps = self._skipped = 0
        self._culprits = frozenset()
        self._statistics = None

    def optimizer_step(self) -> None:
        """Step, if the gradient is finite."""
        self._steps += 1
        scale = self.scaler.get_scale()
        if self.scaler.is_enabled():
            self._mend_statistics()  # before the EMA takes them over: the step itself is the scaler's to leave out
        if self.scaler.is_enabled() or self._is_finite():
            super().optimizer_step()
            if self.scaler.get_scale() >= scale:  # PyTorch lowers it where it leaves a step out
                self._in_a_row = 0
                return
        else:
            self.optimizer.zero_grad()
        # A loss scale begins too high and finds its height by such steps: not worth a word while losses are finite
        # (of all processes: each has skipped this step)
        skipped = not (self.scaler.is_enabled() and bool(shared(self.loss.isfinite().float()) == 1))
        self._skipped, self._in_a_row = self._skipped + skipped, self._in_a_row + skipped
        self._culprits |= {name for name, value in self.loss_items.items() if not bool(value.isfinite())}
        self._mend_statistics()

    def _is_finite(self) -> bool:
        grads = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        return bool(torch.nn.utils.get_total_norm(grads).isfinite()) if grads else True

    def _mend_statistics(self) -> None:
        """Put BatchNorm's running statistics back where a forward pass has made them NaN or infinite."""
        if self._statistics is None:
            buffers = unwrap_model(self.model).named_buffers()
            self._statistics = {k: b for k, b in buffers if b.is_floating_point() and b.numel()}
        buffers = self._statistics
        # The largest value of all: a few launches and one wait on a GPU, where this comes every step
        if not buffers or bool(torch.nn.utils.get_total_norm(buffers.values(), float("inf")).isfinite()):
            return
        kept = dict(self.ema.ema.named_buffers())
        for name, buffer in buffers.items():
            if not bool(buffer.isfinite().all()):
                buffer.copy_(kept[name])

    def _handle_nan_recovery(self, epoch: int) -> bool:
        """Say what was left out; go back to the last checkpoint only where the weights themselves are not finite.

        Raises:
            UserError: No step of the epoch was finite, nor, where it has but one, that before it.
        """
        if self._skipped:
            losses = f" ({', '.join(sorted(self._culprits))})" if self._culprits else ""
            if self._skipped == self._steps and self._in_a_row >= PATIENCE:
                kept = f"the weights of epoch {epoch} are in {self.last}" if epoch else "nothing was saved"
                raise UserError(f"no step of epoch {epoch + 1} was finite{losses}: lower lr0, or set amp=False; {kept}")
            LOGGER.warning(f"left out {self._skipped} of {self._steps} steps that were not finite{losses}")
        lost = self.loss is not None and not bool(self.loss.isfinite())
        if lost and all(bool(p.isfinite().all()) for p in self.model.parameters()):
            self.loss = torch.zeros_like(self.loss)  # one batch's, of which nothing is left
        return super()._handle_nan_recovery(epoch)
