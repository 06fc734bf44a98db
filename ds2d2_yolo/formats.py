"""The export formats of Ultralytics: their names, what they need installed, and what may be expected of the files."""

from __future__ import annotations

import difflib
import os
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec

from torch.onnx import _constants
from ultralytics.engine.exporter import FP32_UNSUPPORTED_FORMATS, export_formats

from ds2d2_yolo.errors import UserError
from ds2d2_yolo.report.exported import reason

FORMATS = tuple(export_formats()["Argument"][1:])
ALIASES = {  # other names Ultralytics takes for a format
    **dict.fromkeys(("tensorrt", "trt"), "engine"),
    **dict.fromkeys(("mlmodel", "mlpackage", "mlprogram", "apple", "ios"), "coreml"),
    **dict.fromkeys(("huawei", "cann", "om"), "ascend"),
    **dict.fromkeys(("vitis", "vitisai", "versal"), "xilinx"),
    **dict.fromkeys(("tflite", "tfjs"), "litert"),
}
# What a format needs beyond this package's own requirements; Ultralytics checks for it only halfway through.
_TENSORFLOW = ("tensorflow", "tf_keras", "onnx2tf", "sng4onnx", "onnx_graphsurgeon", "ai-edge-litert")
PACKAGES = {
    "openvino": ("openvino",),
    "engine": ("tensorrt",),
    "coreml": ("coremltools",),
    "coreai": ("coreai-torch",),
    **dict.fromkeys(("saved_model", "pb", "edgetpu"), _TENSORFLOW),
    "litert": ("litert-torch", "ai-edge-litert"),
    "paddle": ("paddlepaddle", "x2paddle"),
    "mnn": ("MNN",),
    "ncnn": ("ncnn", "pnnx"),
    "imx": ("model-compression-toolkit", "imx500-converter", "edge-mdt-cl", "edge-mdt-tpc"),
    "rknn": ("rknn-toolkit2",),
    "executorch": ("executorch",),
    "axelera": ("axelera-devkit",),
    "deepx": ("dx_com",),
    "qnn": ("onnxruntime-qnn",),
    "hailo": ("hailo_dataflow_compiler",),
    "xilinx": ("amd-quark",),
}
# Formats that compute in float32 wherever they run. Other runtimes may choose less (bfloat16, TF32) by themselves.
EXACT = {"torchscript", "onnx", "saved_model", "pb", "litert", "paddle", "executorch"}
MUST_RUN = {"torchscript", "onnx"}  # their runtimes are requirements of this package
_FLOAT16_AT_LEAST = {"rknn", "ascend"}  # of the formats without float32, those that are not integer by default


def is_model(path: str) -> bool:
    """Whether a file or folder has the name of a checkpoint or of an exported model, as Ultralytics tells them."""
    name = os.path.basename(os.path.normpath(path)).lower()
    return any(suffix in name for suffix in (*export_formats()["Suffix"], ".mlmodel"))


def base_name(fmt: str) -> str:
    """The name by which Ultralytics' tables know a format."""
    return ALIASES.get(fmt, fmt)


def has_float32(fmt: str, quantize: int | str | None) -> bool:
    """Whether the exported weights and activations are float32."""
    return quantize in (None, 32) and base_name(fmt) not in FP32_UNSUPPORTED_FORMATS


def is_calibrated(fmt: str, quantize: int | str | None) -> bool:
    """Whether the conversion needs images to find the ranges of its integers."""
    fmt = base_name(fmt)
    takes_data = "data" in dict(zip(FORMATS, export_formats()["Arguments"][1:], strict=True))[fmt]
    integer = quantize in (8, "w8a16") or fmt in FP32_UNSUPPORTED_FORMATS - _FLOAT16_AT_LEAST
    return takes_data and integer


def check_nms_and_opset(args: dict, plan, inside: bool) -> None:
    """Say which settings of an NMS the file will not have, and check what version of ONNX's operators is asked for.

    PyTorch would tell the latter with hundreds of lines about the graph.

    Args:
        args: What was asked for.
        plan: The same with all defaults.
        inside: Whether the model gives detections by itself.

    Raises:
        UserError: The version is newer than PyTorch writes.
    """
    of_nms = ("conf", "iou", "agnostic_nms", "max_det")
    idle = [f"{key}={args[key]}" for key in of_nms if args.get(key) not in (None, False)]
    if idle and not (plan.nms or inside):
        print(f"{' '.join(idle)} goes for the picture: the file has no NMS (nms=True puts it there)")
    most = getattr(_constants, "ONNX_TORCHSCRIPT_EXPORTER_MAX_OPSET", None)
    if plan.opset and most and plan.opset > most and base_name(plan.format) == "onnx":
        raise UserError(f"opset={plan.opset}: this version of PyTorch writes operators up to opset={most}")


def check_half_nms(plan, classes: int) -> None:
    """Warn of an NMS in half precision that cannot place small objects.

    Ultralytics puts classes apart by adding their number to boxes of 0 to 1, and divides by how many there are; from a
    half on, float16 has steps of 1/2048.

    Args:
        plan: All settings.
        classes: How many the model knows.
    """
    step = classes * max(plan.imgsz) / 2048
    if plan.nms and plan.quantize == 16 and not plan.agnostic_nms and base_name(plan.format) == "onnx" and step > 1:
        print(
            f"WARNING: with {classes} classes the NMS of a half-precision ONNX file sees boxes rounded to "
            f"{step:.2g} px, and errs where small objects are dense: leave out nms=True, or half=True"
        )


def names_a_chip(name) -> bool:
    """Whether Ultralytics' ``name`` is the chip that a format's file is made for."""
    fmt, taken = base_name(str(name).lower()), dict(zip(FORMATS, export_formats()["Arguments"][1:], strict=True))
    return "name" in taken.get(fmt, ())


def known_format(name: str) -> str:
    """The format's name in small letters.

    Raises:
        UserError: no such format (names the nearest), or nothing of what it needs is installed (names that).
    """
    name = str(name).lower()
    if name not in FORMATS and name not in ALIASES:
        near = difflib.get_close_matches(name, [*FORMATS, *ALIASES], n=2)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise UserError(f"unknown format {name}: {hint}There are {', '.join(FORMATS)}")
    needed = PACKAGES.get(base_name(name), ())
    if needed and not any(map(_installed, needed)):
        raise UserError(_needs(name, needed))
    return name


def why_failed(fmt: str, error: Exception) -> str:
    """One line on a failed conversion, with the packages to install if that is what it takes."""
    cause = error
    while cause and not isinstance(cause, ImportError):
        cause = cause.__cause__ or cause.__context__
    missing = [name for name in PACKAGES.get(base_name(fmt), ()) if not _installed(name)]
    if cause and (missing or cause.name):
        return _needs(fmt, missing or [cause.name.partition(".")[0]])
    return f"export to {fmt} failed: {reason(error)}"


def _needs(fmt: str, packages) -> str:
    return f"format={fmt} needs Python packages that are not installed; install {', '.join(packages)}"


def _installed(name: str) -> bool:
    """Whether a package is there, as a distribution or, where a system provides it without one, as a module."""
    try:
        distribution(name)
    except PackageNotFoundError:
        return find_spec(name.replace("-", "_")) is not None
    return True
