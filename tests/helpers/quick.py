"""Ways to be quicker where a test is about something else."""

from contextlib import contextmanager
from copy import deepcopy

import pytest
import torch

PERIOD = 65_537  # prime: no two filters begin at the same place


@contextmanager
def quick_weights():
    """Fresh layers are filled with draws of their own spread that repeat: drawing takes most of a large ResNet's time.

    Each layer's first `PERIOD` numbers are drawn as ever, so small layers are as they would be.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in ("normal_", "uniform_"):
            patch.setattr(torch.Tensor, name, _repeating(getattr(torch.Tensor, name)))
        yield


def _repeating(draw):
    def fill(tensor, *args, **kwargs):
        if tensor.numel() <= PERIOD or not tensor.is_contiguous():
            return draw(tensor, *args, **kwargs)
        flat = tensor.view(-1)
        drawn = draw(flat[:PERIOD], *args, **kwargs)
        for rest in flat[PERIOD:].split(PERIOD):
            rest.copy_(drawn[: len(rest)])
        return tensor

    return fill


def copied(model):
    """A student-teacher model of one's own; teacher and amplifiers, which never change, are those of `model`."""
    copy = deepcopy(model)  # leaves them out
    copy._frozen = model._frozen
    return copy
