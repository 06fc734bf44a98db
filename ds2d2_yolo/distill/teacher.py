"""Loads a trained teacher and makes sure that it can teach this student."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn
from ultralytics.nn.distill_model import DistillationModel
from ultralytics.nn.tasks import load_checkpoint

import ds2d2_yolo.restricted  # noqa: F401  so that checkpoints run nothing
from ds2d2_yolo.detectors.weights import for_channels
from ds2d2_yolo.distill.levels import detect_head
from ds2d2_yolo.errors import UserError
from ds2d2_yolo.paths import folder_instead
from ds2d2_yolo.stages import refuse_stage


def load_teacher(
    path: str | Path, names: dict[int, str] | None = None, channels: int | None = None, single: bool = False
) -> nn.Module:
    """Load a teacher checkpoint, in eval mode and without gradients.

    Args:
        path: A ``.pt`` file that Ultralytics or this project trained.
        names: The data set's classes by index; the teacher must have the same. ``None`` skips the check.
        channels: Input channels of the data; a teacher of another number is made to see what it has learned to see.
        single: All classes count as one (``single_cls``): a teacher of one class will do, whatever its name.

    Raises:
        UserError: No such file, no detector in it, or classes that differ.
    """
    file = Path(path)
    if not file.is_file():
        missing = f"'{path}' does not exist; give the path of a trained .pt file"
        raise UserError(f"teacher {folder_instead(path) or missing}")
    if file.suffix != ".pt":
        near = file.with_suffix(".pt")
        found = f"'{near}', which lies beside it" if near.is_file() else "the one of the training that it comes from"
        raise UserError(f"teacher '{path}' is no .pt checkpoint; give {found}")
    model = load_weights_of("teacher", path)
    trained_at = model.trained_at
    if isinstance(model, DistillationModel):  # last.pt of a distilled run teaches too
        model._remove_feature_hooks()  # they would keep the last feature maps, also in the amplifier's checkpoints
        model = model.student_model
    refuse_stage(model, f"teacher '{path}'")
    detect_head(model, f"teacher '{path}'")
    if names is not None and not (single and len(model.names) == 1):
        check_names(model.names, names, path)
    fingerprint = weights_fingerprint(model)
    if channels is not None and model.yaml.get("channels", 3) != channels:
        converted = type(model)(model.yaml.copy(), ch=channels, nc=model.yaml["nc"], verbose=False)
        converted.names = model.names
        converted.load(model, verbose=False)
        with torch.no_grad():  # all that look at the image: YOLOv9e has two
            for new, own in zip(converted.parameters(), model.parameters(), strict=True):
                if new.shape != own.shape:
                    new.copy_(_filters(own, channels))
        model = converted
    model.trained_at = trained_at
    model.fingerprint = fingerprint  # of the file's weights: an amplifier belongs to these
    return model.eval().requires_grad_(False)


def _filters(weight: Tensor, channels: int) -> Tensor:
    """Return the first convolution's filters for other channels; bands that the teacher never saw change nothing."""
    if 1 in (channels, weight.shape[1]):
        return for_channels(weight, channels)
    unseen = max(channels - weight.shape[1], 0)
    return torch.cat([weight[:, :channels], weight.new_zeros(len(weight), unseen, *weight.shape[2:])], 1)


def load_weights_of(role: str, path: str | Path) -> nn.Module:
    """Load the model of a checkpoint that is to be ``role``, as ``load_checkpoint`` does.

    Raises:
        UserError: There is no such file, or it cannot be loaded.
    """
    if not Path(path).is_file():
        raise UserError(f"{role} '{path}' does not exist; weights are never fetched: give a local .pt file")
    try:
        model, checkpoint = load_checkpoint(Path(path))
        model.trained_at = (checkpoint.get("train_args") or {}).get("imgsz")  # model.args has a default in its place
        return model
    except UserError:
        raise
    except Exception as error:  # whatever a broken or foreign file makes the unpickler raise
        raise UserError(f"{role} '{path}' cannot be loaded: {_first_line(error)}") from error


def weights_fingerprint(model: nn.Module) -> str:
    """Return 16 hexadecimal digits that stand for a model's parameters and buffers."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _listed(names: list) -> str:
    more = f" and {len(names) - 6} more" if len(names) > 7 else ""
    return ", ".join(map(str, names[: 6 if more else 7])) + more


def check_names(teacher: dict[int, str], data: dict[int, str], path: str | Path) -> None:
    """Raise a ``UserError`` that names the classes on which teacher and data disagree."""
    teacher, data = (dict(enumerate(n)) if isinstance(n, list) else dict(n) for n in (teacher, data))
    if teacher == data:
        return
    ours, theirs = list(data.values()), list(teacher.values())
    only_data = [n for n in ours if n not in theirs]
    only_teacher = [n for n in theirs if n not in ours]
    parts = [
        f"{who} has {_listed(n)}" for who, n in (("only the data", only_data), ("only the teacher", only_teacher)) if n
    ]
    way = "train the teacher on this data set first"
    if not parts:
        moved = [str(n) for i, n in data.items() if teacher.get(i) != n]
        parts = [f"same classes in another order ({_listed(moved)})"]
    elif list(map(_spelled, ours)) == list(map(_spelled, theirs)):
        way = "it is a matter of spelling: give the data file the teacher's names"
    elif len(ours) == len(theirs):
        way += ", or, where every number means the same in both, give the data file the teacher's names"
    raise UserError(
        f"teacher '{path}' ({len(theirs)} classes) and data ({len(ours)} classes) differ: {'; '.join(parts)}; {way}"
    )


def _spelled(name: str) -> str:
    """Return a class's letters and digits alone: "storage-tank" and "Storage tank" are one."""
    return "".join(filter(str.isalnum, str(name))).casefold() or str(name)


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
