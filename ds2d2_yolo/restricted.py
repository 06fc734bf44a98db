"""Files of others are read without running what they bring along, unless the user says ``trust=True``.

Ultralytics loads checkpoints in many places, by one function: importing this module puts another in its place. It is
stricter than ULTRALYTICS_SAFE_LOAD, which lets a file call the constructors of Ultralytics' and PyTorch's modules;
some of these read other files or fetch them.
"""

from __future__ import annotations

import importlib
import pickle
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import _weights_only_unpickler as torchs
from torch import nn
from ultralytics import nn as ultralytics_nn
from ultralytics.data import dataset, utils
from ultralytics.nn import tasks
from ultralytics.utils import ROOT
from ultralytics.utils.checks import check_suffix
from ultralytics.utils.downloads import attempt_download_asset

from ds2d2_yolo import familiar, pickles
from ds2d2_yolo.errors import UserError

# Modules of this package that bring classes of checkpoints; importing them puts these on PyTorch's list
_OURS = ("ds2d2_yolo.detectors.registry", "ds2d2_yolo.engine.amplifier_trainer")
# What checkpoints call while they are read, beside PyTorch's own rebuilding of tensors; all else is filled, not called
_CALLED = {
    *(f"ultralytics.{part}.IterableSimpleNamespace" for part in ("utils", "yolo.utils")),
    *("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath")),
}
_ATTRIBUTE = re.compile(r"forward|forward_fuse|[A-Z][A-Z_]*")  # of a module; a constant of an enumeration
# As keys of an object's state these would decide what becomes of it, in place of its class
_NO_STATE = {"__class__", "__dict__", "__setstate__"}
_ARRAYS = {("numpy", "ndarray"), ("numpy", "dtype")} | {
    (f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")
}
_FAMILIAR = ("collections.", "torch.", "torchvision.", "ultralytics.", "ds2d2_yolo.")
_ONLY_IF = "only if you know where the file comes from: trust=True"
_OF_ITS_RUN = ("save_dir", "exist_ok", "student_run", "resume", "begun_in", "begun_with")
_trust: ContextVar[bool] = ContextVar("trust", default=False)


class Refusal(UserError):
    """A file that brings along more than a checkpoint does."""


@contextmanager
def trusted(trust: bool = True) -> Iterator[None]:
    """Let files run what they bring along while the context lasts.

    Raises:
        UserError: ``trust`` is neither True nor False.
    """
    if not isinstance(trust, bool):
        raise UserError(f"trust={trust} is neither True nor False")
    token = _trust.set(trust or _trust.get())
    try:
        yield
    finally:
        _trust.reset(token)


def is_trusting() -> bool:
    """Whether files may run what they bring along, as things stand."""
    return _trust.get()


def not_from_a_file(settings: dict, file, given: dict) -> dict:
    """Return settings read from a ``cfg=`` file without those that it has no say in.

    ``trust`` is for the user to say. Where a run writes, and which it goes on with, is that run's own: its
    ``args.yaml`` would write over it.

    Resuming replaced the model that the run began with by its checkpoint, and the amplifier by a file: they are put
    back.

    Raises:
        UserError: The file asks for trust, and what is ``given`` beside it does not speak of it; or it is of a run that
            an older version has resumed, and ``given`` names no model.
    """
    if settings.get("trust") and "trust" not in given and not is_trusting():
        raise UserError(
            f"'{file}' says trust={settings['trust']}, which no file can; if you mean it, say so beside cfg= instead "
            "(in Python: with trusted():)"
        )
    if not settings.keys() >= {"save_dir", "task", "mode"}:
        return {key: value for key, value in settings.items() if key != "trust"}
    if settings.get("resume") and not settings.get("begun_with") and not given.get("model"):
        raise UserError(
            f"'{file}' is of a run that was resumed and does not say with which model it began: name model="
        )
    settings = {**settings, **begun_with(settings)}
    return {key: value for key, value in settings.items() if key not in ("trust", *_OF_ITS_RUN)}


def begun_with(settings: Mapping) -> dict:
    """Return what a run was asked for that resuming has replaced, relative paths as they lead from where it began."""
    found, folder = dict(settings.get("begun_with") or {}), settings.get("begun_in")
    for key, value in found.items():
        if folder and isinstance(value, str) and (Path(folder) / value).is_file():
            found[key] = str(Path(folder) / value)
    return found


def inspect(path: str | Path) -> None:
    """Refuse a checkpoint that would run something; one that is broken passes, reading it will say so.

    Raises:
        Refusal: Names what it asks for.
    """
    if is_trusting() or not Path(path).is_file():
        return
    wants, is_zip = _wants(Path(path))
    if any(name.startswith("ds2d2_yolo.") for one in wants for name in one.names):
        for module in _OURS:
            importlib.import_module(module)
    listed = True
    if is_zip:
        try:
            with tasks._SafeLoad.loading(str(path)):
                pass  # what it asks for of Ultralytics' list is on PyTorch's now
        except (EOFError, pickle.UnpicklingError):
            listed = False  # cut short, or not in PyTorch's protocol: it will not load
    asked = next((found for one in wants if (found := _excess(one) if listed else _foreign(one))), None)
    if asked:
        raise Refusal(_refusal(path, asked, is_zip))


def load_tensors(path: str | Path):
    """Return what a file of tensors in plain containers holds.

    Raises:
        Refusal: It would run something.
        Exception: Whatever a broken or foreign file makes PyTorch raise.
    """
    inspect(path)
    return torch.load(path, map_location="cpu", weights_only=not is_trusting())


def _wants(path: Path) -> tuple[list[pickles.Wants], bool]:
    """What a file's pickles ask for, and whether it is one of PyTorch's zip archives."""
    with open(path, "rb") as file:
        if file.read(4) == b"PK\x03\x04":
            try:
                return [_read(torch._C.PyTorchFileReader(str(path)).get_record("data.pkl"))], True
            except RuntimeError:  # no archive of PyTorch's, or a broken one
                return [], False
        file.seek(0)
        found = []
        while len(found) < 5:  # before 1.6: a magic number, version, system, the object, keys of the bytes that follow
            try:
                found.append(pickles.read(file))
            except pickles.Broken as broken:
                return [*found, broken.wants], False
        return found, False


@lru_cache(maxsize=8)  # a run reads its teacher several times
def _read(record: bytes) -> pickles.Wants:
    try:
        return pickles.read(record)
    except pickles.Broken as broken:
        return broken.wants


def _excess(wants: pickles.Wants) -> str | None:
    """The first thing that a pickle asks for and must not have."""
    known, given = torchs._get_allowed_globals(), torchs._get_user_allowed_globals()
    for name in wants.names:
        if name not in known and name not in given:
            return name
    for kind, function, arguments, *more in wants.calls:
        named = function if isinstance(function, pickles.Name) else "a function that it computes"
        if named == "builtins.getattr":
            of, attribute = arguments if isinstance(arguments, tuple) and len(arguments) == 2 else (None, None)
            if not (isinstance(attribute, pickles.Text) and _ATTRIBUTE.fullmatch(attribute)):
                return f"builtins.getattr of {of or 'an object'}, {attribute or 'a name that it computes'}"
            continue
        plain = isinstance(arguments, tuple) and not more and all(n in known for n in pickles.names_in(arguments))
        fills = kind == "NEWOBJ" and named in given and arguments == ()
        if not fills and not (plain and (named in known or named in _CALLED)):
            return named
    return next((f"a state with {text}" for text in sorted(_NO_STATE & wants.texts)), None)


def _foreign(wants: pickles.Wants) -> str | None:
    return next((name for name in wants.names if not name.startswith(_FAMILIAR) and name not in _CALLED), None)


def _refusal(path, asked: str, is_zip: bool) -> str:
    line = f"'{path}' asks for {asked}, which no checkpoint that is known here needs; nothing of it was run"
    if not is_zip and asked.startswith(("torch.", "ultralytics.")):
        line = f"'{path}' was saved in the format of PyTorch before 1.6, in which {asked} cannot be loaded restricted"
    return f"{line}. Load it {_ONLY_IF}"


def _load_checkpoint(weight, safe_only: bool | None = None):
    """In place of Ultralytics' ``torch_safe_load``."""
    if is_trusting():
        return _ultralytics_load(weight, safe_only=False)
    check_suffix(file=weight, suffix=".pt")  # Ultralytics' own rule, by which best.PT is one, too
    file = attempt_download_asset(weight)
    known = familiar.digest(file) if Path(file).is_file() else None
    if familiar.is_known(known):
        with suppress(Exception):  # as with tensors that are cut short, of which what follows tells
            return _with_a_model(weight, familiar.load(file), file)
    inspect(file)
    try:
        checkpoint = _with_a_model(weight, *_ultralytics_load(weight, safe_only=True))
    except (EOFError, IndexError, KeyError, TypeError, pickle.UnpicklingError) as error:
        if not isinstance(error, TypeError) or isinstance(error.__cause__, pickle.UnpicklingError):
            raise UserError(f"'{weight}' cannot be loaded: it is empty, cut short, or no checkpoint") from error
        raise
    except AttributeError as error:  # what is no dict is taken for a model
        if isinstance(error.__context__, KeyboardInterrupt):  # where Ultralytics takes back what it had not set yet
            raise error.__context__ from None
        raise UserError(f"'{weight}' cannot be loaded: it is no checkpoint of a detector") from error
    familiar.remember(known)
    return checkpoint


def written(file: str | Path | bytes | memoryview) -> None:
    """Tell that this process has written a checkpoint: read again, it needs no second look.

    What is written while files are trusted may hold what they brought along.
    """
    if not is_trusting():
        familiar.remember(familiar.digest(file))


def _with_a_model(weight, checkpoint: dict, file) -> tuple[dict, str]:
    if str(checkpoint.get("format")).startswith("ds2d2-amplifier"):
        raise UserError(f"'{weight}' is a high-frequency amplifier and no detector; name the teacher beside it")
    if not any(isinstance(checkpoint.get(key), nn.Module) for key in ("ema", "model")):
        raise UserError(
            f"'{weight}' cannot be loaded: it holds no model (of weights alone YOLO makes one: "
            "y = YOLO('NAME.yaml'); y.model.load_state_dict(weights, strict=False); y.save('NAME.pt'))"
        )
    if not isinstance(checkpoint.get("train_args", {}), dict):
        raise UserError(f"'{weight}' cannot be loaded: its train_args are no settings")
    return checkpoint, file


def _load_label_cache(path) -> dict:
    """In place of NumPy's reading of a data set's label cache; one that is refused is made anew by the caller."""
    if is_trusting():
        return _ultralytics_cache(path)
    with open(path, "rb") as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"{path} is no label cache")
        np.lib.format.read_array_header_1_0(file)
        return _Arrays(file).load().item()


class _Arrays(pickle.Unpickler):
    """Knows nothing but NumPy's arrays and numbers."""

    def find_class(self, module: str, name: str):
        if (module, name) not in _ARRAYS:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a label cache")
        return super().find_class(module, name)


def _run_script(script: str, names: dict) -> None:
    """In place of ``exec`` on a data set file's ``download:``."""
    file = Path(str(names["yaml"].get("yaml_file", "")))
    if not file.resolve().is_relative_to(ROOT):  # those that come with Ultralytics are no one else's
        _refuse_script(f"'{file}'")
    exec(script, names)


def _run_command(command, **options):
    _refuse_script("the data set file")
    return subprocess.run(command, **options)


def _refuse_script(who: str) -> None:
    if not is_trusting():
        raise Refusal(f"{who} asks to run a script to fetch images that are missing (download:). Let it {_ONLY_IF}")


_ultralytics_load, _ultralytics_cache = tasks.torch_safe_load, utils.load_dataset_cache_file
tasks.torch_safe_load = ultralytics_nn.torch_safe_load = _load_checkpoint
tasks.SAFE_LOAD = True  # also builds models from YAML without eval, where Ultralytics was imported before this package
utils.load_dataset_cache_file = dataset.load_dataset_cache_file = _load_label_cache
utils.exec, utils.subprocess = _run_script, SimpleNamespace(run=_run_command)
