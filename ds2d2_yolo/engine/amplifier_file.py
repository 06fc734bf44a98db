"""The file of a trained amplifier: its head, whose it is, and what high frequencies it knows (DS2D2)."""

from __future__ import annotations

import io
import uuid
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn
from ultralytics.utils import LOGGER, colorstr

from ds2d2_yolo.distill.levels import detect_head
from ds2d2_yolo.engine import settings
from ds2d2_yolo.engine.checkpoints import write_whole
from ds2d2_yolo.errors import UserError
from ds2d2_yolo.restricted import Refusal, load_tensors

FORMAT = "ds2d2-amplifier-1"
BLIND = 0.01  # of AP50, from 0 to 1
HIGH_PASS = ("wavelet", "wavelet_padding", "high_frequency")


class Damaged(UserError):
    """A file whose content cannot be read."""


def write_amplifier(
    head: nn.Module, teacher: str, args, metrics: dict[str, float] | None, name: str, folders: list[Path]
) -> Path:
    """Write a trained amplifier to the first of ``folders`` that takes it, and say so if it has been rated.

    One that another run has put there by then stays: that run goes on with it. The last folder is the run's own.

    Args:
        head: The trained head.
        teacher: The fingerprint of the teacher's weights.
        args: The run's, with what its high frequencies are.
        metrics: What Ultralytics' validation of it found; None: it has not been rated yet.
        name: Of the file.
        folders: Where it may go, the best place first.

    Raises:
        UserError: None of them takes it.
    """
    data = {
        "format": FORMAT,
        "head": {k: v.half() if v.is_floating_point() else v for k, v in head.state_dict().items()},
        "teacher": teacher,
        **dict(zip(HIGH_PASS, settings.high_pass(args), strict=True)),
        "ap50": float((metrics or {}).get("metrics/mAP50(B)", 0.0)),
        "ap": float((metrics or {}).get("metrics/mAP50-95(B)", 0.0)),
    }
    buffer = io.BytesIO()
    torch.save(data, buffer)
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if folder != folders[-1] and _others(folder / name, data["head"]):
                LOGGER.info(f"another run's amplifier stays in {folder}")
                continue
            # Of its own name: two runs that begin together end this stage together, and may write the same file
            write_whole(folder / name, buffer.getvalue(), folder / f"{name}.{uuid.uuid4().hex[:8]}.partial")
        except OSError as error:
            LOGGER.warning(f"cannot keep the amplifier in {folder}: {error.strerror or error}")
            continue
        if metrics is not None:
            LOGGER.info(
                f"{colorstr('DS2D2:')} amplifier on high frequencies alone: AP50 {data['ap50']:.3f}, "
                f"AP50-95 {data['ap']:.3f}; kept as {folder / name}"
            )
            warn_if_blind(data["ap50"])
        return folder / name
    raise UserError(f"the trained amplifier could not be kept in {' or '.join(map(str, folders))}")


def warn_if_blind(ap50: float) -> None:
    """Warn of an amplifier that finds next to nothing: what it says of a student's map is noise."""
    if ap50 < BLIND:
        LOGGER.warning(
            f"the amplifier finds next to nothing on high frequencies (AP50 {ap50:.3f}) and will teach as little: take "
            "more amplifier_epochs=, a teacher trained on this data, or im_high=0 for none"
        )


def _others(path: Path, head: dict[str, Tensor]) -> bool:
    """Whether something sound lies there that is not this head."""
    if not path.exists():
        return False
    try:
        there = read_amplifier(path)["head"]
    except Damaged:
        return False
    except UserError:  # it cannot be read now, or is something else
        return True
    return there.keys() != head.keys() or not all(torch.equal(there[key], value.cpu()) for key, value in head.items())


def amplifier_head(path: str | Path, teacher: nn.Module, wavelet: str, padding: str, kind: str) -> nn.Module:
    """Return the head of the amplifier kept at ``path``, checked against its teacher and the high frequencies in use.

    Raises:
        UserError: No amplifier, one of another teacher, or one trained on other high frequencies.
    """
    data = read_amplifier(path)
    head = deepcopy(detect_head(teacher))
    try:
        head.load_state_dict(data["head"])
    except RuntimeError as error:
        raise UserError(f"amplifier '{path}' does not fit this teacher's head; use amplifier=auto") from error
    if data["teacher"] != teacher.fingerprint:
        raise UserError(f"amplifier '{path}' was trained for another teacher; use amplifier=auto")
    seen = {"high_frequency": "bands", **data}  # older files know no other kind
    if tuple(seen[key] for key in HIGH_PASS) != (wavelet, padding, kind):
        made = " ".join(f"{key}={seen[key]}" for key in HIGH_PASS)
        raise UserError(f"amplifier '{path}' was trained with {made}; use these, or amplifier=auto")
    return head.float()


def read_amplifier(path: str | Path) -> dict:
    """Return what ``write_amplifier`` wrote to ``path``.

    Raises:
        UserError: There is no file, or it is no amplifier; ``Damaged`` where its content cannot be read.
    """
    if not Path(path).is_file():
        raise UserError(f"amplifier '{path}' does not exist; use amplifier=auto to train one")
    try:
        data = load_tensors(path)
    except Refusal:
        raise
    except (OSError, MemoryError) as error:  # of the machine: the file may be a good one
        raise UserError(f"amplifier '{path}' cannot be read now: {error}") from error
    except Exception as error:  # whatever a broken or foreign file makes the unpickler raise
        raise Damaged(f"amplifier '{path}' cannot be read; use amplifier=auto to train one") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise UserError(f"'{path}' is no DS2D2 amplifier, a file TEACHER-amplifier-HASH.pt; amplifier=auto trains one")
    return data
