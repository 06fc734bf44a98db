"""Detectors loaded to be run as their users run them: PyTorch, ONNX Runtime, and what else Ultralytics has."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch
from torch import Tensor, nn
from ultralytics.nn.autobackend import AutoBackend
from ultralytics.nn.backends.base import BaseBackend
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils.torch_utils import get_cpu_info, select_device

import ds2d2_yolo.detectors.registry  # noqa: F401  so that checkpoints of these detectors load
import ds2d2_yolo.restricted  # noqa: F401  and run nothing
import ds2d2_yolo.threads  # noqa: F401  so that no core is idle
from ds2d2_yolo.errors import UserError
from ds2d2_yolo.report.exported import reason
from ds2d2_yolo.report.onnx_file import onnx_layout

RUNTIMES = {"pt": "PyTorch", "torchscript": "TorchScript", "openvino": "OpenVINO", "engine": "TensorRT"}


@dataclass(frozen=True)
class Loaded:
    """A detector that is ready to run.

    `run`: images (B, C, H, W) in [0, 1] on `device` -> raw outputs or detections, or a list that begins with them;
    `size` (height, width) and `batch`: those the file is bound to, None where it takes any; `module`: in PyTorch only.
    """

    run: Callable
    runtime: str
    hardware: str
    device: torch.device
    channels: int
    stride: int
    size: tuple[int, int] | None = None
    batch: int | None = None
    dtype: torch.dtype = torch.float32
    module: nn.Module | None = None


def load(path, device="", end2end: bool | None = None, fp16: bool = False) -> Loaded:
    """The detector in a file, ready to run on the device.

    Args:
        path: The file.
        device: As Ultralytics has it: cpu, 0, ...
        end2end: Whether a checkpoint with both kinds of head answers without NMS; None: as it is set.
        fp16: In half precision, where the runtime has it.

    Raises:
        UserError: There is no such file, it does not load, or it is no detector.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"model file '{path}' does not exist")
    device = select_device(device, verbose=False)
    try:
        return _load_onnx(path, device) if path.suffix == ".onnx" else _load_backend(path, device, end2end, fp16)
    except UserError:
        raise
    except Exception as error:  # every runtime has its own ways to fail
        raise UserError(f"model '{path}' cannot be loaded: {reason(error)}") from error


def made_for(path) -> int | list[int] | None:
    """The image size that a file was trained with or is bound to, as `imgsz=` has it; None where it does not tell."""
    path = Path(path)
    if path.suffix == ".pt":
        try:
            size = load_checkpoint(path)[1].get("train_args", {}).get("imgsz")
        except UserError:
            raise
        except Exception:  # what is wrong with it is told where it is run
            return None
    else:
        bound = onnx_layout(path).imgsz if path.suffix == ".onnx" else None
        size = bound or BaseBackend.read_metadata(path).get("imgsz")  # that of the export, of any size too
        try:
            size = ast.literal_eval(size) if isinstance(size, str) else size
        except (SyntaxError, ValueError):  # of another exporter
            return None
    return edges(size) if size else None


def edges(size: int | Sequence[int]) -> int | list[int]:
    """An image size as `imgsz=` has it: one edge of a square, or height and width."""
    if isinstance(size, int):
        return size
    return size[0] if len(set(size)) == 1 else list(size)


def beside(models: Mapping[str, tuple[int, int]]) -> tuple[dict[str, str], list[str]]:
    """The exported files beside checkpoints, best.onnx beside best.pt, that can be timed with them.

    Returns their paths by the checkpoints', and a sentence on each that is left out: those that are no detector, are
    older than the checkpoint, or bound to another image size than `models` says of it (height, width). Files that are
    among `models` themselves are left out without a word.
    """
    found, notes, named = {}, [], set(map(os.path.abspath, models))
    for model, imgsz in models.items():
        file = Path(model).with_suffix(".onnx")
        if Path(model).suffix != ".pt" or not file.is_file() or os.path.abspath(file) in named:
            continue
        try:
            bound = load(file, "cpu").size
        except UserError as error:  # nobody has asked for this file
            notes.append(f"{file} was not timed with its checkpoint: {error}.")
            continue
        if _dates_from_before(file, Path(model)):
            notes.append(f"{file} is older than its checkpoint: not timed with it.")
        elif bound in (None, tuple(imgsz)):
            found[model] = str(file)
        else:
            sizes = ["{1} x {0} px".format(*size) for size in (bound, imgsz)]
            notes.append(f"{file} takes images of {sizes[0]} alone: not timed with its checkpoint at {sizes[1]}.")
    return found, notes


def _dates_from_before(file: Path, checkpoint: Path) -> bool:
    """Whether an exported file says that it was made before the checkpoint was; as files, both may be copies."""
    made = BaseBackend.read_metadata(file).get("date")
    trained = load_checkpoint(checkpoint)[1].get("date") if made else None
    try:
        return datetime.fromisoformat(made).astimezone() < datetime.fromisoformat(trained).astimezone()
    except (TypeError, ValueError):  # one of them says nothing
        return False


def _load_backend(path: Path, device: torch.device, end2end: bool | None, fp16: bool) -> Loaded:
    backend = AutoBackend(str(path), device=device, fp16=fp16, end2end=end2end, verbose=False).eval()
    module = backend.model if backend.format == "pt" else None
    _check_task(path, getattr(module, "task", None) if module is not None else backend.task)
    if module is not None and backend.end2end and hasattr(module, "set_head_attr"):
        module.set_head_attr(max_det=300, agnostic_nms=False)  # as Ultralytics' predictor does
    bound = module is None and bool(backend.metadata) and not backend.dynamic
    return Loaded(
        backend,
        RUNTIMES.get(backend.format, backend.format),
        hardware(backend.device),
        backend.device,
        backend.channels,
        backend.stride,
        size=tuple(backend.imgsz) if bound else None,
        batch=backend.batch if bound else None,
        dtype=torch.float16 if backend.fp16 else torch.float32,
        module=module,
    )


def _load_onnx(path: Path, device: torch.device) -> Loaded:
    """ONNX Runtime alone, with arrays in and out, and as many threads as PyTorch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that wait in a loop for the next call would take the cores of whoever's turn it is
    options.add_session_config_entry("session.force_spinning_stop", "1")
    providers = ["CPUExecutionProvider"]
    if device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
    session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    about = session.get_modelmeta().custom_metadata_map
    _check_task(path, about.get("task"))
    entry = session.get_inputs()[0]
    if len(session.get_inputs()) > 1 or len(entry.shape) != 4 or entry.type not in ("tensor(float)", "tensor(float16)"):
        raise UserError(f"model '{path}' does not take a batch of images as its one input, so it cannot be timed")
    batch, channels, *size = (n if isinstance(n, int) and n > 0 else None for n in entry.shape)
    if batch is None and ast.literal_eval(about.get("args", "{}")).get("nms"):  # NMS is unrolled for so many images
        batch = int(about.get("batch", 1))
    on_gpu = session.get_providers()[0] == "CUDAExecutionProvider"

    def run(images: Tensor) -> Tensor:
        try:
            return torch.from_numpy(session.run(None, {entry.name: images.numpy()})[0])
        except Exception as error:  # ONNX Runtime has a class of its own for each
            raise UserError(f"model '{path}' fails on {tuple(images.shape)}: {reason(error)}") from error

    return Loaded(
        run,
        "ONNX Runtime",
        hardware(device if on_gpu else torch.device("cpu")),
        device=torch.device("cpu"),
        channels=channels or 3,
        stride=int(about.get("stride", 32)),
        size=tuple(size) if all(size) else None,
        batch=batch,
        dtype=torch.float16 if "float16" in entry.type else torch.float32,
    )


def _check_task(path: Path, task: str | None) -> None:
    if task not in (None, "detect"):
        raise UserError(f"model '{path}' is made for the task '{task}', not for detection")


def hardware(device: torch.device) -> str:
    """A name for what runs there: the GPU's, or the CPU's with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return str(device)
    threads = torch.get_num_threads()
    return f"{get_cpu_info()}, {threads} thread{'s' * (threads > 1)}"
