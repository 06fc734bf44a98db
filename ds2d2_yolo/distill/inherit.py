"""A student that starts from its teacher's weights: evenly spaced channels of every layer that both have.

Weight selection (Xu et al., ICLR 2024), with the channels followed from layer to layer: through concatenations whose
parts shrink unevenly, through blocks of another depth, and through attention, which is taken head by head.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from ultralytics.nn.modules.block import DFL, A2C2f, AAttn, Attention, C2f
from ultralytics.nn.modules.conv import Concat

from ds2d2_yolo.detectors.modules import FPN, ResNet
from ds2d2_yolo.distill.levels import detect_head, pass_to_head

_PASSING = (nn.Upsample, nn.MaxPool2d, nn.AvgPool2d, nn.Identity)  # layers that leave channels as they are
_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_LEVEL = re.compile(r"\.((?:one2one_)?cv[23])\.(\d+)(?=\.|$)")  # a level's branch in YOLO's heads
# What boxes and classes come out of, by its name in the head: these have no evenly spaced half
_PREDICTS = re.compile(r"(\.(one2one_)?cv[23]\.\d+\.\d+|(cls_logits|bbox_reg|bbox_pred|cls_score))$")
_NOTHING = torch.empty(0, dtype=torch.long)  # places that fit no layer
Axes = tuple[Tensor, ...]  # for a tensor's leading axes: the teacher's place of every place of the student


@dataclass
class _Flow:
    """What a pass over an empty image shows.

    Attributes:
        channels: Of every layer's map.
        strides: Pixels of the image to a cell of it.
        reads: The layer whose map a convolution takes, by the convolution's name.
    """

    channels: dict[int, int] = field(default_factory=dict)
    strides: dict[int, int] = field(default_factory=dict)
    reads: dict[str, int] = field(default_factory=dict)


@torch.no_grad()
def inherit(student: nn.Module, teacher: nn.Module) -> float:
    """Give the student what it can take of its teacher's weights and statistics; return that part of its parameters.

    The two are Ultralytics models of one family; layers that differ in more than width stay as they are.
    """
    own, theirs = student.state_dict(), teacher.state_dict()
    taken = selection(student, teacher)
    for name, (source, axes) in taken.items():
        value = theirs[source]
        for axis, places in enumerate(axes):
            value = value.index_select(axis, places.to(value.device))
        own[name].copy_(value)
    sizes = {name: p.numel() for name, p in student.named_parameters() if p.requires_grad}  # DFL's are fixed
    return sum(size for name, size in sizes.items() if name in taken) / sum(sizes.values())


def selection(student: nn.Module, teacher: nn.Module) -> dict[str, tuple[str, Axes]]:
    """For the student's tensors by name: the teacher's tensor to take from, and its places."""
    flow, outputs, unlike = _followed(student, teacher)
    twins, twin_of = dict(teacher.named_modules()), _Names(student, teacher)
    special, alike, taken = {}, {}, {}
    for name, module in student.named_modules():
        twin = twins.get(twin_of(name))
        fits = type(module) is type(twin) and not isinstance(module, DFL) and name not in unlike
        alike[name] = fits and (not name or alike[name.rpartition(".")[0]])
        if not alike[name]:
            continue
        if isinstance(module, (Attention, AAttn)):
            special |= _heads(name, module, twin)
        elif isinstance(module, (C2f, A2C2f)):
            special[f"{name}.cv2"] = (None, _parts(module, twin))
        for group in _groups(name, module, twin):
            found = {}
            for leaf, one, other in group:
                own, read = special.get(name, (None, None)), outputs.get(flow.reads.get(leaf))
                axes = _axes(one, other, own, read, whole=twin_of.predicts(leaf))
                if axes is None:
                    break  # a normalisation without its convolution is of no use
                found |= {f"{leaf}.{key}": (f"{twin_of(leaf)}.{key}", value) for key, value in axes.items()}
            else:
                taken |= found
    return _whole_backbones(student, taken)


def evenly(size: int, count: int) -> Tensor:
    """Return ``count`` evenly spaced places of ``size``."""
    return torch.arange(count) * size // count


class _Names:
    """The teacher's name of a module of the student: heads meet wherever they stand, and their levels by stride."""

    def __init__(self, student: nn.Module, teacher: nn.Module):
        self._ours, self._theirs = (f"model.{len(m.model) - 1}" for m in (student, teacher))
        ours, theirs = ([int(s) for s in detect_head(m).stride] for m in (student, teacher))
        self._levels = {i: theirs.index(s) for i, s in enumerate(ours) if s in theirs}

    def __call__(self, name: str) -> str:
        if not f"{name}.".startswith(f"{self._ours}."):
            return name
        return self._theirs + _LEVEL.sub(self._level, name.removeprefix(self._ours), count=1)

    def predicts(self, name: str) -> bool:
        return name.startswith(f"{self._ours}.") and bool(_PREDICTS.search(name))

    def _level(self, found: re.Match) -> str:
        return f".{found[1]}.{self._levels.get(int(found[2]), 'none')}"


def _followed(student: nn.Module, teacher: nn.Module) -> tuple[_Flow, dict[int, Tensor], set[str]]:
    """The student's flow, for every layer's map the teacher's channel of each of its channels, and unlike layers."""
    flow, wide = _flow(student), _flow(teacher)
    places: dict[int, Tensor] = {}
    unlike: set[str] = set()
    for i, layer in enumerate(student.model[:-1]):
        twin = teacher.model[i] if i < len(teacher.model) - 1 else None
        if type(layer) is not type(twin) or layer.f != twin.f or flow.strides.get(i) != wide.strides.get(i):
            unlike.add(f"model.{i}")
            continue
        sources = [i + f if f < 0 else f for f in ([layer.f] if isinstance(layer.f, int) else layer.f)]
        if isinstance(layer, (Concat, *_PASSING)):
            places[i] = _NOTHING  # of a part that is another's channels nobody can take what belongs together
            if all(len(places.get(s, _NOTHING)) for s in sources):
                starts = [sum(wide.channels[s] for s in sources[:k]) for k in range(len(sources))]
                places[i] = torch.cat([places[s] + start for s, start in zip(sources, starts, strict=True)])
        elif flow.channels.get(i, 0) and wide.channels.get(i, 0) >= flow.channels[i]:
            places[i] = evenly(wide.channels[i], flow.channels[i])
    return flow, places, unlike


def _flow(model: nn.Module) -> _Flow:
    """Watch a pass over an empty image."""
    flow, made, hooks = _Flow(), {}, []
    size = 2 * int(detect_head(model).stride.max())

    def note_output(i: int, output) -> None:
        if isinstance(output, Tensor):
            made[id(output)] = (i, output)  # held, so that no other tensor gets its id
            flow.channels[i], flow.strides[i] = output.shape[1], size // output.shape[3]

    def note_input(name: str, inputs: tuple) -> None:
        if id(inputs[0]) in made:
            flow.reads[name] = made[id(inputs[0])][0]

    for i, layer in enumerate(model.model):
        hooks.append(layer.register_forward_hook(lambda _m, _x, output, i=i: note_output(i, output)))
    for name, module in model.named_modules():
        if isinstance(module, _CONVOLUTIONS):
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
        return {f"{name}.{part}": (_NOTHING, None) for part in ("qkv", "pe", "proj")}
    heads = evenly(twin.num_heads, module.num_heads)[:, None]
    asked, values = 2 * key + module.head_dim, module.head_dim
    qkv, value = ((heads * n + torch.arange(n)).flatten() for n in (asked, values))
    return {f"{name}.qkv": (qkv, None), f"{name}.pe": (value, None), f"{name}.proj": (None, value)}


def _parts(module: nn.Module, twin: nn.Module) -> Tensor:
    """Input places of the convolution that takes what the blocks before it made, one after another."""
    ours, theirs = (len(m.m) + (2 if isinstance(m, C2f) else 1) for m in (module, twin))
    narrow, wide = module.cv2.conv.in_channels // ours, twin.cv2.conv.in_channels // theirs
    if ours > theirs or narrow > wide:
        return _NOTHING  # the teacher lacks blocks or channels
    return (torch.arange(ours)[:, None] * wide + evenly(wide, narrow)).flatten()


def _groups(name: str, module: nn.Module, twin: nn.Module) -> Iterator[list[tuple[str, nn.Module, nn.Module | None]]]:
    """A module's own tensors and its parts that have no parts, each beside the teacher's: what is taken together."""
    group = []
    if next(module.children(), None) is not None and next(module.parameters(recurse=False), None) is not None:
        group.append((name, module, twin))
    for key, part in module.named_children():
        if next(part.children(), None) is None and part.state_dict():
            group.append((f"{name}.{key}".lstrip("."), part, getattr(twin, key, None)))
    if type(module) in (nn.Sequential, nn.ModuleList):  # one after another, not one unit
        yield from ([one] for one in group)
    else:
        yield group


def _axes(one, other, own: tuple[Tensor | None, Tensor | None], read: Tensor | None, whole: bool):
    """The places of a leaf's tensors by name; ``None`` where the teacher has nothing that fits."""
    if type(one) is not type(other):
        return None
    ours, theirs = (dict([*m.named_parameters(recurse=False), *m.named_buffers(recurse=False)]) for m in (one, other))
    if ours.keys() != theirs.keys():
        return None
    if whole and any(value.shape[:1] != theirs[key].shape[:1] for key, value in ours.items()):
        return None
    if isinstance(one, _CONVOLUTIONS):
        return _convolution(one, other, *own, read)
    # One number a channel: a normalisation, or what a block scales its maps with
    if isinstance(one, nn.modules.batchnorm._BatchNorm) or next(one.children(), None) is not None:
        axes = {key: _per_channel(value, theirs[key], own[0]) for key, value in ours.items()}
        return None if None in axes.values() else axes
    same = all(value.shape == theirs[key].shape for key, value in ours.items())
    return dict.fromkeys(ours, ()) if same else None


def _per_channel(value: Tensor, wide: Tensor, out: Tensor | None) -> Axes | None:
    if value.dim() == 0 or value.dim() > 1:
        return () if value.shape == wide.shape else None
    places = evenly(len(wide), len(value)) if out is None else out
    return (places,) if len(places) == len(value) <= len(wide) else None


def _convolution(one, other, out: Tensor | None, into: Tensor | None, read: Tensor | None):
    if one.weight.shape[2:] != other.weight.shape[2:] or one.dilation != other.dilation:
        return None
    ours, theirs = ((c.out_channels, c.in_channels, c.groups) for c in (one, other))
    if any(a > b for a, b in zip(ours[:2], theirs[:2], strict=True)):
        return None
    out = evenly(theirs[0], ours[0]) if out is None else out
    if into is None and read is not None and not len(read):
        return None
    if into is None:
        into = read if read is not None and len(read) == ours[1] else evenly(theirs[1], ours[1])
    if len(out) != ours[0] or len(into) != ours[1]:
        return None
    bias = {} if one.bias is None else {"bias": (out,)}
    if ours[2] == theirs[2] == 1:
        return {"weight": (into, out) if isinstance(one, nn.ConvTranspose2d) else (out, into), **bias}
    depthwise = all(groups == channels for _, channels, groups in (ours, theirs))
    return {"weight": (out,), **bias} if depthwise or ours == theirs else None


def _whole_backbones(student: nn.Module, taken: dict[str, tuple[str, Axes]]) -> dict[str, tuple[str, Axes]]:
    """Leave out a ResNet that the teacher's blocks fill only in part, and what reads its maps: it has its own start."""
    left_out = []
    for name, module in student.named_modules():
        if isinstance(module, ResNet) and not {f"{name}.{key}" for key in module.state_dict()} <= taken.keys():
            left_out.append(f"{name}.")
            for n, m in student.named_modules():
                if isinstance(m, FPN):
                    left_out.append(f"{n}.fpn.inner_blocks.")
                    if not getattr(m.fpn.extra_blocks, "use_P5", True):
                        left_out.append(f"{n}.fpn.extra_blocks.p6.")
    return {key: value for key, value in taken.items() if not key.startswith(tuple(left_out))} if left_out else taken
