"""Small students and teachers of every family."""

from copy import deepcopy
from functools import cache

import torch

from tests.helpers.distilling import PAPER, distilled, tiny, tiny_faster_rcnn, tiny_retinanet

KINDS = {
    "retinanet": tiny_retinanet,
    "faster-rcnn": tiny_faster_rcnn,
    "yolo": lambda width, seed=0: tiny((8, 16, 32), width=width, seed=seed),
}


@cache
def built(kind, width, seed):
    return KINDS[kind](width, seed=seed)


def pair(student, teacher, width=24, **changes):
    """A student of 16 channels, or multiples of them, with a teacher of `width`: nowhere the same unless it is 16."""
    torch.manual_seed(0)  # of the adapters, and of the regions that are sampled
    return distilled(deepcopy(built(student, 16, 0)), built(teacher, width, 1), **{**PAPER, **changes})
