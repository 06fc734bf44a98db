"""TorchScript files that run on any device, not only on the kind that they were made on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import nn
from ultralytics.utils.export import torchscript


@contextmanager
def for_any_device() -> Iterator[None]:
    """Let Ultralytics' export to TorchScript write graphs that ask their input where it lies."""
    trace = torch.jit.trace

    def portable(model: nn.Module, *args, **kwargs) -> torch.jit.ScriptModule:
        return follow_input(trace(model, *args, **kwargs))

    def export(*args, **kwargs) -> str:
        with patch.object(torch.jit, "trace", portable):
            return write(*args, **kwargs)

    write = torchscript.torch2torchscript
    with patch.object(torchscript, "torch2torchscript", export):
        yield


def follow_input(traced: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """Replace the devices that tracing has written into ``traced`` by that of its first input; return it.

    Tracing makes a constant of ``x.device`` in ``torch.arange(n, device=x.device)``: anchors and NMS on another device
    would then meet tensors of the one that the graph was made on.
    """
    graph = traced.graph
    torch._C._jit_pass_inline(graph)  # functions and modules that it calls have graphs of their own
    fixed = [c for c in graph.findAllNodes("prim::Constant") if c.output().type().kind() == "DeviceObjType"]
    if fixed:
        here = graph.create("prim::device", [list(graph.inputs())[1]], 1)  # after the module itself
        here.output().setType(torch._C.DeviceObjType.get())
        graph.prependNode(here)
        for constant in fixed:
            constant.output().replaceAllUsesWith(here.output())
    return traced
