"""Checkpoints that run something when they are unpickled, each in another way: it makes a file, the canary."""

import functools
import io
import os
import pickle
import subprocess
from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from tests.helpers.checkpoints import narrow_detector


class Call:
    """Is unpickled by calling ``function(*arguments)``."""

    def __init__(self, function, *arguments):
        self.made = function, arguments

    def __reduce__(self):
        return self.made


class Restored(nn.Module):
    """Runs its command when its state is set."""

    def __init__(self, command):
        super().__init__()
        self.command = command

    def __setstate__(self, state):
        super().__setstate__(state)
        os.system(self.command)


def touch(canary):
    return f"touch {canary}"


def good():
    """The content of a checkpoint that loads."""
    return {"model": narrow_detector().half(), "epoch": -1, "train_args": {"task": "detect", "imgsz": 64}}


def zipped(path, data):
    """Write PyTorch's zip archive around the bytes of a pickle."""
    writer = torch._C.PyTorchFileWriter(str(path))
    writer.write_record("data.pkl", data, len(data))
    writer.write_record("version", b"3\n", 2)
    writer.write_end_of_file()
    return path


def text(value):
    """The opcodes for a string."""
    raw = str(value).encode()
    return b"X" + len(raw).to_bytes(4, "little") + raw


def named(name):
    """The opcodes for a class or function, by its dotted name."""
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def called(function, *arguments):
    """The opcodes for a call; arguments are opcodes too."""
    return named(function) + b"(" + b"".join(arguments) + b"tR"


def dictionary(key, value):
    """A whole pickle of a dict of one entry; the value is opcodes."""
    return b"\x80\x02}" + text(key) + value + b"s."


def _hidden(key):
    def write(path, canary):
        torch.save({**good(), key: Call(os.system, touch(canary))}, path)

    return write


def _model(make):
    """A checkpoint whose model is what ``make(canary)`` gives."""
    return lambda path, canary: torch.save({**good(), "model": make(canary)}, path)


def _opcodes(make):
    return lambda path, canary: zipped(path, dictionary("model", make(canary)))


def _in_module(path, canary):
    content = good()
    content["model"].model[0].note = Restored(touch(canary))
    torch.save(content, path)


def _array(canary):
    array = np.empty(1, object)
    array[0] = Call(os.system, touch(canary))
    return array


def _legacy(path, canary):
    content = {**good(), "model": Call(os.system, touch(canary))}
    torch.save(content, path, _use_new_zipfile_serialization=False)


def _plain_pickle(path, canary):
    path.write_bytes(pickle.dumps(Call(os.system, touch(canary))))


def _newer_protocol(path, canary):
    zipped(path, pickle.dumps({"model": Call(os.system, touch(canary))}, protocol=4))


def newer_call(module, attribute, *arguments):
    """A whole pickle of a newer protocol, that calls a function with strings."""

    def short(value):
        return b"\x8c" + bytes([len(raw := str(value).encode())]) + raw

    return b"\x80\x04" + short(module) + short(attribute) + b"\x93(" + b"".join(map(short, arguments)) + b"tR."


def _newer_dotted(path, canary):
    """A newer protocol follows dots into the modules that a familiar one has imported."""
    zipped(path, newer_call("torch.serialization", "os.system", touch(canary)))


def _cut_short(path, canary):
    whole = pickle.dumps([Call(os.system, touch(canary)), "what follows"], protocol=2)
    zipped(path, whole[:-5])


def _model_yaml(canary):
    """The constructor of a class on the list, with a YAML file whose activation is code."""
    yaml = canary.with_suffix(".yaml")
    code = f"nn.SiLU() if __import__('os').system('{touch(canary)}') == 0 else None"
    yaml.write_text(
        f'nc: 1\nactivation: "{code}"\nbackbone:\n- [-1, 1, Conv, [8, 3, 2]]\nhead:\n- [[0], 1, Detect, [nc]]\n'
    )
    return called("ultralytics.nn.tasks.DetectionModel", text(yaml))


def _other_file(canary):
    """The constructor of a class on the list, that loads another checkpoint."""
    other = canary.with_suffix(".pt")
    _hidden("ema")(other, canary)
    return called("ultralytics.nn.distill_model.DistillationModel", text(other), text(other))


def _through_pytorch(canary):
    """A function on PyTorch's own list, that calls what it is given."""
    given = _model_yaml(canary)
    cls, arguments = given[: given.index(b"(")], given[given.index(b"(") : -1]
    return called("torch._tensor._rebuild_from_type_v2", cls, cls, arguments, b"}")


def _set_state(canary):
    """A state that brings its own way of being set."""
    state = b"}" + text("__setstate__") + named("ultralytics.nn.tasks.DetectionModel") + b"s"
    given = _model_yaml(canary)
    path = given[given.index(b"(") + 1 : -2]
    return named("ultralytics.utils.IterableSimpleNamespace") + b")R" + state + b"b" + path + b"b"


def _getattr_chain(canary):
    """From a class on the list to the globals of its module, to importlib in them, and so to os.system."""

    def attribute(of, name):
        return called("builtins.getattr", of, text(name))

    def call(function, argument):
        return function + b"(" + text(argument) + b"tR"

    space = attribute(attribute(named("ultralytics.nn.tasks.DetectionModel"), "__init__"), "__globals__")
    module = call(attribute(call(attribute(space, "get"), "importlib"), "import_module"), "os")
    return call(attribute(module, "system"), touch(canary))


def kind(write, said, runs=True):
    """``write(path, canary)``; ``said``: what the refusal names; ``runs``: whether reading it unrestricted runs it."""
    return SimpleNamespace(write=write, said=said, runs=runs)


KINDS = {
    "os.system": kind(_model(lambda canary: Call(os.system, touch(canary))), "posix.system"),
    "eval": kind(_model(lambda canary: Call(eval, f"open({str(canary)!r}, 'w')")), "builtins.eval"),
    "subprocess": kind(_model(lambda canary: Call(subprocess.call, ["touch", str(canary)])), "subprocess.call"),
    "partial": kind(
        _model(lambda canary: Call(map, functools.partial(os.system, touch(canary)), [])), "builtins.map", runs=False
    ),
    "in train_args": kind(_hidden("train_args"), "posix.system"),
    "in ema": kind(_hidden("ema"), "posix.system"),
    "in optimizer": kind(_hidden("optimizer"), "posix.system"),
    "module with __setstate__": kind(_in_module, "tests.helpers.hostile.Restored"),
    "numpy array of objects": kind(_model(_array), "_reconstruct"),
    "legacy format": kind(_legacy, "posix.system"),
    "plain pickle": kind(_plain_pickle, "posix.system"),
    "newer protocol": kind(_newer_protocol, "posix.system"),
    "newer protocol, dotted": kind(_newer_dotted, "os.system in torch.serialization"),
    "cut short": kind(_cut_short, "posix.system"),
    "this package's function": kind(
        _opcodes(lambda canary: called("ds2d2_yolo.cli.main", b"]" + text(canary) + b"a")), "ds2d2_yolo.cli.main", False
    ),
    "constructor that builds": kind(_opcodes(_model_yaml), "ultralytics.nn.tasks.DetectionModel", runs=False),
    "constructor that loads": kind(_opcodes(_other_file), "DistillationModel", runs=False),
    "through PyTorch's list": kind(_opcodes(_through_pytorch), "torch._tensor._rebuild_from_type_v2", runs=False),
    "state with __setstate__": kind(_opcodes(_set_state), "a state with __setstate__", runs=False),
    "getattr": kind(_opcodes(_getattr_chain), "builtins.getattr of ultralytics.nn.tasks.DetectionModel, __init__"),
}


def truncated(content, size):
    """The first bytes of a checkpoint; ``size``: how many, or which part of them."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    whole = buffer.getvalue()
    return whole[: size if isinstance(size, int) else int(len(whole) * size)]


def state_dict():
    """Weights without their model."""
    return OrderedDict(narrow_detector().state_dict())
