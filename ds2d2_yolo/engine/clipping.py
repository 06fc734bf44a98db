"""Ultralytics clips the norm of a step's gradient: in parts, so that what distils takes less or nothing of others'."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ds2d2_yolo.distill.levels import detect_head
from ds2d2_yolo.distill.model import DS2D2Model


@contextmanager
def clipped_apart(model: DS2D2Model, labels_alone: bool) -> Iterator[None]:
    """Let Ultralytics clip in parts while the context lasts.

    The amplifier that learns alongside is clipped by itself. ``labels_alone``: the adapters, too, which learn from the
    terms alone, and the rest by an estimate of the norm that the labels' gradient has: no term touches the student's
    head, and to the layers before it the terms add what they add at the neck.
    """
    clip, room = torch.nn.utils.clip_grad_norm_, model.balance.room() if labels_alone else 1.0
    parts = [] if model.amplifier is None else [model.amplifier]
    parts = [{id(p) for p in m.parameters()} for m in (*parts, *([model.projector] if labels_alone else []))]
    head = {id(p) for p in detect_head(model.student_model).parameters()}

    def in_parts(every: Iterable[nn.Parameter], max_norm: float, **options) -> torch.Tensor:
        rest = list(every)
        for part in parts:
            apart, rest = [p for p in rest if id(p) in part], [p for p in rest if id(p) not in part]
            if apart:
                clip(apart, max_norm, **options)
        if room == 1:
            return clip(rest, max_norm, **options)

        def norm(of_head: bool) -> torch.Tensor:
            some = [p.grad for p in rest if p.grad is not None and (id(p) in head) == of_head]
            return get_total_norm(some, **options)

        body = norm(of_head=False)
        labels = torch.hypot(norm(of_head=True).to(body.device), body / room)
        clip_grads_with_norm_(rest, max_norm, labels, **options)
        return labels

    with patch.object(torch.nn.utils, "clip_grad_norm_", in_parts):
        yield
