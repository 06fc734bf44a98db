"""A student that starts from its teacher's weights: evenly spaced channels of every layer that both have.

Weight selection (Xu et al., ICLR 2024), with the channels followed from layer to layer: through concatenations whose
parts shrink unevenly, and through attention, which is taken head by head.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from ultralytics.nn.modules.block import A2C2f, AAttn, Attention, C2f
from ultralytics.nn.modules.conv import Concat

from ds2d2_yolo.distill.levels import pass_to_head

_PASSING = (nn.Upsample, nn.MaxPool2d, nn.AvgPool2d, nn.Identity)  # layers that leave channels as they are
Axes = tuple[Tensor, ...]  # for a tensor's leading axes: the teacher's place of every place of the student


class _Flow(NamedTuple):
    """Channels of every layer's map, and the layer whose map a convolution takes, by its name."""

    channels: dict[int, int]
    reads: dict[str, int]


@torch.no_grad()
def inherit(student: nn.Module, teacher: nn.Module) -> float:
    """Give the student what it can take of its teacher's weights and statistics; return that part of its parameters.

    The two are Ultralytics models of one family; layers that differ in more than width stay as they are.
    """
    own, theirs = student.state_dict(), teacher.state_dict()
    taken = selection(student, teacher)
    for name, axes in taken.items():
        value = theirs[name]
        for axis, places in enumerate(axes):
            value = value.index_select(axis, places.to(value.device))
        own[name].copy_(value)
    sizes = {name: p.numel() for name, p in student.named_parameters()}
    return sum(size for name, size in sizes.items() if name in taken) / sum(sizes.values())


def selection(student: nn.Module, teacher: nn.Module) -> dict[str, Axes]:
    """Which places of the teacher's tensors a student takes, by the tensor's name."""
    twins, head = dict(teacher.named_modules()), f"model.{len(student.model) - 1}."
    flow, outputs = _followed(student, teacher)
    special, alike, taken = {}, {}, {}
    for name, module in student.named_modules():
        parent, twin = name.rpartition(".")[0], twins.get(name)
        alike[name] = type(module) is type(twin) and (not name or alike[parent])
        if not alike[name]:
            continue
        if isinstance(module, (Attention, AAttn)):
            special |= _heads(name, module, twin)
        elif isinstance(module, (C2f, A2C2f)):
            special[f"{name}.cv2"] = (None, _parts(module, twin))
        group = {}
        for leaf, one, other in _leaves(name, module, twin):
            read = outputs.get(flow.reads.get(leaf))
            axes = _axes(one, other, *special.get(name, (None, None)), read, is_head=leaf.startswith(head))
            if axes is None:
                break  # a normalisation without its convolution is of no use
            group |= {f"{leaf}.{key}".lstrip("."): value for key, value in axes.items()}
        else:
            taken |= group
    return taken


def evenly(size: int, count: int) -> Tensor:
    """Return ``count`` evenly spaced places of ``size``."""
    return torch.arange(count) * size // count


def _followed(student: nn.Module, teacher: nn.Module) -> tuple[_Flow, dict[int, Tensor]]:
    """The student's flow, and for every layer's map the teacher's channel of every channel of the student."""
    flow, wide = _flow(student), _flow(teacher).channels
    places: dict[int, Tensor] = {}
    for i, (layer, twin) in enumerate(zip(student.model, teacher.model, strict=False)):
        if i not in flow.channels or i not in wide or type(layer) is not type(twin) or layer.f != twin.f:
            continue
        sources = [i + f if f < 0 else f for f in ([layer.f] if isinstance(layer.f, int) else layer.f)]
        if isinstance(layer, (Concat, *_PASSING)):
            if all(s in places for s in sources):
                starts = [sum(wide[s] for s in sources[:k]) for k in range(len(sources))]
                places[i] = torch.cat([places[s] + start for s, start in zip(sources, starts, strict=True)])
        elif wide[i] >= flow.channels[i]:
            places[i] = evenly(wide[i], flow.channels[i])
    return flow, places


def _flow(model: nn.Module) -> _Flow:
    """Watch a pass over an empty image."""
    flow, made, hooks = _Flow({}, {}), {}, []

    def note_output(i: int, output) -> None:
        if isinstance(output, Tensor):
            made[id(output)] = (i, output)  # held, so that no other tensor gets its id
            flow.channels[i] = output.shape[1]

    def note_input(name: str, inputs: tuple) -> None:
        if id(inputs[0]) in made:
            flow.reads[name] = made[id(inputs[0])][0]

    for i, layer in enumerate(model.model):
        hooks.append(layer.register_forward_hook(lambda _m, _x, output, i=i: note_output(i, output)))
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_pre_hook(lambda _m, inputs, name=name: note_input(name, inputs)))
    try:
        pass_to_head(model, model.yaml.get("channels", 3))
    finally:
        for hook in hooks:
            hook.remove()
    return flow


def _heads(name: str, module: nn.Module, twin: nn.Module) -> dict[str, tuple[Tensor | None, Tensor | None]]:
    """Output and input places of an attention's convolutions: whole heads."""
    key = getattr(module, "key_dim", module.head_dim)
    if (key, module.head_dim) != (getattr(twin, "key_dim", twin.head_dim), twin.head_dim):
        return {f"{name}.{part}": (torch.empty(0), None) for part in ("qkv", "pe", "proj")}  # fits nothing
    heads = evenly(twin.num_heads, module.num_heads)[:, None]
    asked, values = 2 * key + module.head_dim, module.head_dim
    qkv, value = ((heads * n + torch.arange(n)).flatten() for n in (asked, values))
    return {f"{name}.qkv": (qkv, None), f"{name}.pe": (value, None), f"{name}.proj": (None, value)}


def _parts(module: nn.Module, twin: nn.Module) -> Tensor | None:
    """Input places of the convolution that takes what the blocks before it made, one after another."""
    ours, theirs = (len(m.m) + (2 if isinstance(m, C2f) else 1) for m in (module, twin))
    if ours > theirs:
        return None  # its deeper blocks are not the teacher's
    narrow, wide = module.cv2.conv.in_channels // ours, twin.cv2.conv.in_channels // theirs
    return (torch.arange(ours)[:, None] * wide + evenly(wide, narrow)).flatten() if narrow <= wide else None


def _leaves(name: str, module: nn.Module, twin: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Module | None]]:
    """A module's own tensors and its parts that have no parts, each beside the teacher's."""
    if any(True for _ in module.parameters(recurse=False)) and next(module.children(), None) is not None:
        yield name, module, twin
    for key, part in module.named_children():
        if next(part.children(), None) is None and part.state_dict():
            yield f"{name}.{key}".lstrip("."), part, getattr(twin, key, None)


def _axes(one, other, out: Tensor | None, into: Tensor | None, read: Tensor | None, is_head: bool):
    """The places of a leaf's tensors by name; ``None`` where the teacher has nothing that fits."""
    if type(one) is not type(other):
        return None
    tensors = dict(one.named_parameters(recurse=False))
    tensors |= dict(one.named_buffers(recurse=False))
    wide = {**dict(other.named_parameters(recurse=False)), **dict(other.named_buffers(recurse=False))}
    if tensors.keys() != wide.keys():
        return None
    if isinstance(one, nn.Conv2d):
        return _convolution(one, other, out, read if into is None else into, is_head)
    if isinstance(one, nn.modules.batchnorm._BatchNorm):
        count = one.num_features
        places = evenly(other.num_features, count) if out is None else out
        fits = len(places) == count <= other.num_features
        return {key: (places,) if value.dim() else () for key, value in tensors.items()} if fits else None
    same = all(value.shape == wide[key].shape for key, value in tensors.items())
    return dict.fromkeys(tensors, ()) if same else None


def _convolution(one: nn.Conv2d, other: nn.Conv2d, out: Tensor | None, into: Tensor | None, is_head: bool):
    if one.weight.shape[2:] != other.weight.shape[2:] or one.dilation != other.dilation:
        return None
    ours, theirs = ((c.out_channels, c.in_channels, c.groups) for c in (one, other))
    if any(a > b for a, b in zip(ours[:2], theirs[:2], strict=True)):
        return None
    predicts = is_head and one.bias is not None and (ours[0] != ours[1] or theirs[0] != theirs[1])
    if predicts and ours[0] != theirs[0]:
        return None  # boxes and classes have no evenly spaced half
    out = evenly(theirs[0], ours[0]) if out is None else out
    if len(out) != ours[0]:
        return None
    bias = {} if one.bias is None else {"bias": (out,)}
    if ours[2] == theirs[2] == 1:
        into = evenly(theirs[1], ours[1]) if into is None or len(into) != ours[1] else into
        return {"weight": (out, into), **bias}
    depthwise = all(groups == channels for _, channels, groups in (ours, theirs))
    return {"weight": (out,), **bias} if depthwise or ours == theirs else None
