r"""How many operations a training step asks the device for: on a GPU each is a launch, and small models wait for these.

    python benchmarks/launches.py --pairs yolov5n:yolov5s --amp

Counted on a CPU by what PyTorch dispatches, views and allocations left out; SGD takes its steps parameter by parameter
there, for every side alike. Sides are those of ``step.py``.
"""

from __future__ import annotations

import argparse

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import step

VIEWS = "view as_strided slice select reshape permute transpose expand unsqueeze squeeze detach t alias split narrow"
NO_WORK = {*VIEWS.split(), "empty", "empty_strided", "empty_like", "_unsafe_view", "_reshape_alias", "unbind", "unfold"}
SIDES = ("plain", "distill_model", "ds2d2", "less explicit", "less im_full", "less im_high")


class Counter(TorchDispatchMode):
    """Counts operations that do some work."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Count one and let it go on."""
        self.count += function.__name__.partition(".")[0] not in NO_WORK
        return function(*args, **(kwargs or {}))


def main() -> None:
    """Print a line for every pair."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--pairs", nargs="+", default=["yolov5n:yolov5s"], help="STUDENT:TEACHER, names of model YAMLs")
    p.add_argument("--amp", action="store_true", help="mixed precision (bfloat16)")
    p.add_argument("--ds2d2", default="", help="key=value,... other settings of DS2D2")
    args = p.parse_args()
    args.device = "cpu"
    for pair in args.pairs:
        torch.manual_seed(0)
        sides = step.build(pair, step.make_batch(128, 4, 30, "cpu"), args)
        print(pair, {name: counted(sides[name]) for name in SIDES})


def counted(side) -> int:
    """Return the operations of a step that is not the first."""
    for _ in range(2):
        side()
    with Counter() as counter:
        side()
    return counter.count


if __name__ == "__main__":
    main()
