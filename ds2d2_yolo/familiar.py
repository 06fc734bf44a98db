"""Checkpoints whose pickle this process has read restricted, or written itself, are read a second time by Python's own
unpickler: PyTorch's restricted one is written in Python, and takes several times as long."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import _weights_only_unpickler as torchs

from ds2d2_yolo import pickles

_pickles: set[bytes] = set()  # digests


def digest(file: str | Path | bytes | memoryview) -> bytes | None:
    """Stand for a checkpoint's pickle, and for what else decides how PyTorch reads the file.

    Args:
        file: Its path, or all of its bytes.

    Returns:
        Nothing where it is not what PyTorch reads as a zip archive of a checkpoint: by its first bytes, and without the
        entry that makes a TorchScript file of it. All else is told apart by the names of its entries.
    """
    there = isinstance(file, (str, Path))
    begins = _first_bytes(file) if there else bytes(file[:4])
    if begins != b"PK\x03\x04":
        return None
    try:
        reader = torch._C.PyTorchFileReader(str(file) if there else io.BytesIO(file))
        names = reader.get_all_records()
        if "constants.pkl" in names:
            return None
        return hashlib.sha256(repr(names).encode(errors="backslashreplace") + reader.get_record("data.pkl")).digest()
    except (RuntimeError, UnicodeDecodeError):
        return None


def _first_bytes(path: str | Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(4)


def remember(known: bytes | None) -> None:
    """Keep the digest of a pickle that was read restricted or written here."""
    if known:
        _pickles.add(known)


def is_known(known: bytes | None) -> bool:
    """Whether a pickle of this digest was kept."""
    return known in _pickles


def load(path: str | Path):
    """Read a checkpoint of a known pickle.

    Raises:
        pickle.UnpicklingError: It asks for something that is not on PyTorch's list, which no known one does.
    """
    return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_IN_ITS_PLACE)


class _Listed(pickle.Unpickler):
    """Knows what PyTorch's restricted unpickler knows."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._list = {**torchs._get_user_allowed_globals(), **torchs._get_allowed_globals()}

    def find_class(self, module: str, name: str):
        name = ".".join(pickles.today(module, name))
        if name not in self._list:
            raise pickle.UnpicklingError(f"{name} is not among the classes that may be loaded")
        return self._list[name]


_IN_ITS_PLACE = SimpleNamespace(__name__="pickle", Unpickler=_Listed)
