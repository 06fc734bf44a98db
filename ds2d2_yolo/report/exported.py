"""Runs an exported file on real images beside the PyTorch detector it was made from, and draws what it finds.

An ONNX file runs twice: with ONNX Runtime alone, as its user will run it, and through Ultralytics.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms
from ultralytics import YOLO
from ultralytics.data.augment import LetterBox
from ultralytics.data.utils import IMG_FORMATS
from ultralytics.nn.autobackend import AutoBackend
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.patches import imread

import ds2d2_yolo.restricted  # noqa: F401  so that checkpoints run nothing
from ds2d2_yolo.detectors.registry import DetectorModel
from ds2d2_yolo.errors import UserError, one_line
from ds2d2_yolo.report import files
from ds2d2_yolo.report.agreement import Agreement, Candidates, Selection, compare_detections, compare_raw
from ds2d2_yolo.report.overlay import with_boxes

Runner = Callable[[Tensor], Tensor]  # images (B, C, H, W) in [0, 1] -> raw outputs or detections


def list_images(source: str | Path | list) -> list[Path]:
    """The image files that a file, folder, glob, text file of paths, or list of those names; sorted within each."""
    if isinstance(source, list | tuple):
        return [path for part in source for path in list_images(part)]
    path = Path(source).expanduser()
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file())
    elif path.suffix == ".txt" and path.is_file():
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise UserError(f"'{path}' is no list of images in UTF-8: {error}") from error
        lines = [Path(line) for line in lines if _is_image(line)]
        # Ultralytics looks there for ./ alone, and else from where we are
        found = [
            line if os.path.isfile(line) and not os.path.isfile(path.parent / line) else path.parent / line
            for line in lines
        ]
    elif path.is_file():
        found = [path]
    else:
        found = sorted(Path(p) for p in glob.glob(str(path), recursive=True))
    return [p for p in found if _is_image(p)]


def _is_image(path: str | Path) -> bool:
    return Path(path).suffix[1:].lower() in IMG_FORMATS


def read_images(paths: list[Path], channels: int, most: int) -> tuple[list[np.ndarray], list[Path]]:
    """Reads up to `most` of them, spread evenly, as (H, W, C) uint8 (BGR where C is 3); also those it could not."""
    step = max(1, len(paths) // most)
    images, broken = [], []
    for path in [*paths[::step], *(p for i, p in enumerate(paths) if i % step)]:
        if len(images) == most:
            break
        flag = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR}.get(channels, cv2.IMREAD_UNCHANGED)
        try:
            image = imread(path, flag)
        except (OSError, cv2.error):
            image = None
        image = image[..., None] if image is not None and image.ndim == 2 else image
        if image is None or image.shape[2] != channels:
            broken.append(path)
        else:
            images.append(image)
    return images, broken


def letterbox(images: list[np.ndarray], size: tuple[int, int]) -> Tensor:
    """Images (H, W, C) as Ultralytics' predictor feeds them at a fixed size: (B, C, *size) RGB float32 in [0, 1]."""
    box = LetterBox(size, auto=False)
    batch = np.stack([np.atleast_3d(box(image=image)) for image in images])
    batch = batch[..., ::-1] if batch.shape[-1] == 3 else batch
    return torch.from_numpy(np.ascontiguousarray(batch.transpose(0, 3, 1, 2))).float() / 255


class CannotRun(Exception):
    """The exported file does not load or does not run here; the message says why, in one line."""


@dataclass(frozen=True)
class Graph:
    """What the exported file says of itself: `end2end` (top-k of a one-to-one head inside), `nms` (NMS inside),
    `dynamic` (any input shape), `batch` (the batch size it was made with, the largest one where NMS is inside)."""

    end2end: bool
    nms: bool
    dynamic: bool
    batch: int


def load_exported(path: Path, fmt: str, device: torch.device) -> tuple[list[Runner], Graph]:
    """The runners of an exported file, and what it says of itself.

    Raises:
        CannotRun: no runtime for it here, or the file does not load.
    """
    try:
        backend = AutoBackend(str(path), device=device, verbose=False).eval()
        runners = [partial(_run_backend, backend)]
        if fmt == "onnx":
            runners.insert(0, onnxruntime_runner(path))
    except Exception as error:  # every runtime has its own ways to fail
        raise CannotRun(reason(error)) from error
    about = backend.metadata
    args = about.get("args", {})
    nms = bool(args.get("nms"))  # Ultralytics folds it into "end2end" too
    graph = Graph(bool(about.get("end2end")) and not nms, nms, bool(args.get("dynamic")), int(about.get("batch", 1)))
    return runners, graph


def _run_backend(backend: AutoBackend, images: Tensor) -> Tensor:
    with torch.no_grad():
        y = backend(images.to(backend.device))
    return (y[0] if isinstance(y, list | tuple) else y).detach().float().cpu()


def onnxruntime_runner(path: Path) -> Runner:
    """The file through ONNX Runtime on the CPU: one array in, the file's first output out, nothing between."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    dtype = np.float16 if "float16" in entry.type else np.float32

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {entry.name: images.numpy().astype(dtype)})[0]).float()

    return run


def reference_runner(student: nn.Module, graph: Graph, agnostic: bool) -> Runner:
    """The student in PyTorch, float32 on the CPU, unfused, with the branch of its head that was exported.

    Raw outputs; or, end to end, *all* rows of the top-k in order of their score, so that the caller sees those that
    the exported file left out too; of RetinaNet and Faster R-CNN all candidates of their NMS.
    """
    model = deepcopy(student).float().cpu().eval()
    head = model.model[-1]
    if hasattr(model, "end2end"):
        model.end2end = graph.end2end
    if getattr(model, "end2end", False):
        head.max_det, head.agnostic_nms = 1 << 30, agnostic
    if isinstance(model, DetectorModel):
        head.options.nms_iou = 1.0

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            y = model(images)
        return y[0] if isinstance(y, list | tuple) else y

    return run


def batches(images: list[np.ndarray], size: tuple[int, int], stride: int, graph: Graph) -> Iterator[tuple[Tensor, int]]:
    """Inputs to compare on, and how many images of each are new: all images at the exported shape; where shapes are
    dynamic also a pair of them, and a larger, oblong shape."""
    batch = 1 if graph.dynamic else graph.batch
    for start in range(0, len(images), batch):
        chunk = images[start : start + batch]
        yield letterbox([chunk[i % len(chunk)] for i in range(batch)], size), len(chunk)
    if graph.dynamic:
        pair = [images[0], images[-1]][: graph.batch if graph.nms else 2]  # NMS is unrolled for so many images
        yield letterbox(pair, size), 0
        larger = (size[0] + stride, size[1] + 2 * stride)
        yield letterbox(images[:1], larger), 0
        yield letterbox(pair, larger), 0


def compare(exported: Tensor, reference: Tensor, nc: int, graph: Graph, rule: Selection) -> Agreement:
    """Agreement of one batch's outputs, whichever layout they have.

    Raises:
        CannotRun: the file gives an output of another shape.
    """
    if exported.shape == reference.shape and reference.shape[1] == 4 + nc and not graph.end2end:
        return compare_raw(exported, reference)
    if exported.ndim != 3 or len(exported) != len(reference) or exported.shape[2] != 6:
        raise CannotRun(f"gives {tuple(exported.shape)} where PyTorch gives {tuple(reference.shape)}")
    total = Agreement()
    if graph.end2end and rule.iou is not None:
        kept = [_after_nms(rows, rule)[: exported.shape[1]] for rows in reference]
        candidates = [Candidates.from_detections(rows, nc) for rows in reference]
    elif graph.nms:
        kept = non_max_suppression(
            reference.clone(), rule.conf, rule.iou, agnostic=rule.agnostic, max_det=rule.max_det, nc=nc
        )
        candidates = [Candidates.from_raw(raw) for raw in reference]
    else:
        kept = reference[:, : exported.shape[1]]
        candidates = [Candidates.from_detections(rows, nc) for rows in reference]
    for found, expected, offered in zip(exported, kept, candidates, strict=True):
        total += compare_detections(found, expected, offered, rule)
    return total


def _after_nms(rows: Tensor, rule: Selection) -> Tensor:
    rows = rows[rows[:, 4] > 0]
    groups = torch.zeros_like(rows[:, 5]) if rule.agnostic else rows[:, 5]
    return rows[batched_nms(rows[:, :4], rows[:, 4], groups, rule.iou)]


def inside(student: nn.Module, rule: Selection) -> Selection:
    """How detections are selected within an end-to-end model: its head's own NMS, or a top-k without one."""
    if isinstance(student, DetectorModel):
        own = student.model[-1].options
        return Selection(own.nms_iou, own.score, None, rule.agnostic, rule.slack)
    return Selection(slack=rule.slack)


def check(
    path: Path,
    fmt: str,
    student: nn.Module,
    images: list[np.ndarray],
    size: tuple[int, int],
    rule: Selection,
    device: torch.device | None = None,
) -> Agreement:
    """How far the exported file is from the student on these images (H, W, C), letterboxed to `size` for both.

    Args:
        rule: how NMS inside the graph was set up, if it is.
        device: where the file runs; the CPU by default. The student runs on the CPU.

    Raises:
        CannotRun: the file does not load or run here.
    """
    runners, graph = load_exported(path, fmt, device or torch.device("cpu"))
    reference = reference_runner(student, graph, rule.agnostic)
    rule = inside(student, rule) if graph.end2end else rule
    stride, nc = int(student.stride.max()), len(student.names)
    total = Agreement()
    for inputs, fresh in batches(images, size, stride, graph):
        expected = reference(inputs)
        for number, run in enumerate(runners):
            try:
                found = run(inputs)
            except Exception as error:  # every runtime has its own ways to fail
                raise CannotRun(f"fails on inputs of shape {tuple(inputs.shape)}: {reason(error)}") from error
            total += replace(compare(found, expected, nc, graph, rule), images=0 if number else fresh)
    return total


def draw(path: Path, images: list[np.ndarray], settings: dict, to: Path) -> int:
    """Runs the exported file on images (H, W, C) the way Ultralytics' users do; of the one in which it finds most it
    writes a picture with the boxes (the first may well show an empty field).

    Args:
        path: the file.
        images: to choose from.
        settings: Ultralytics' for prediction.
        to: the picture.

    Returns:
        How many boxes are in it.
    """
    model, best, settings = YOLO(str(path), task="detect"), None, {**settings, "imgsz": list(settings["imgsz"])}
    for image in images:
        found = model.predict(image, **settings, save=False, verbose=False)[0]
        if best is None or len(found) > len(best[1]):
            best = image, found
    image, found = best
    picture = with_boxes(image, found.boxes.xyxy.cpu().numpy(), found.boxes.cls.int().tolist(), found.names)
    files.replace(to, lambda file: file.write(cv2.imencode(to.suffix, picture)[1].tobytes()))
    return len(found)


def reason(error: BaseException) -> str:
    """An error's message on one line, or its kind where it has none."""
    return one_line(str(error)) or type(error).__name__
