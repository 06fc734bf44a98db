"""What can be read off an ONNX file without running it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ds2d2_yolo.errors import UserError

WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization"}  # nodes that hold parameters


@dataclass(frozen=True)
class Layout:
    """Of a detector's file; None for what is left open or not known.

    `described`: Ultralytics' metadata are in the file;  `imgsz`: height and width of the input;  `classes`: as many as
    the output has room for.
    """

    described: bool
    batch: int | None
    imgsz: tuple[int, int] | None
    classes: int | None


def onnx_parameters(path: str | Path) -> int:
    """Numbers held by the weights and biases of an ONNX file."""
    graph = _load(path).graph
    used = {name for node in graph.node if node.op_type in WEIGHTED for name in node.input}
    return sum(int(np.prod(t.dims, dtype=np.int64)) for t in graph.initializer if t.name in used)


def onnx_layout(path: str | Path) -> Layout:
    """Shapes of input and output. UserError for a file that is no detector's: one input of four dimensions."""
    model = _load(path)
    held = {tensor.name for tensor in model.graph.initializer}
    inputs = [_dims(entry) for entry in model.graph.input if entry.name not in held]
    if len(inputs) != 1 or len(inputs[0]) != 4:
        raise UserError(f"model '{path}' takes no images: its inputs have the shapes {inputs}")
    batch, _, height, width = inputs[0]
    output = _dims(model.graph.output[0]) if model.graph.output else []
    raw = len(output) == 3 and output[2] != 6 and output[1]  # else boxes, score and class after NMS
    described = any(entry.key == "stride" for entry in model.metadata_props)
    imgsz = (height, width) if height and width else None
    return Layout(described, batch, imgsz, output[1] - 4 if raw else None)


def beside(models: Mapping[str, tuple[int, int]]) -> tuple[dict[str, str], list[str]]:
    """The exported files beside checkpoints, best.onnx beside best.pt, that can be timed with them.

    Returns their paths by the checkpoints', those left out that are among `models` themselves or bound to another image
    size than `models` says of the checkpoint (height, width), and a sentence on each of the latter.
    """
    found, notes = {}, []
    for model, imgsz in models.items():
        file = Path(model).with_suffix(".onnx")
        if Path(model).suffix != ".pt" or not file.is_file() or str(file) in models:
            continue
        bound = onnx_layout(file).imgsz
        if bound in (None, tuple(imgsz)):
            found[model] = str(file)
        else:
            sizes = ["{1} x {0} px".format(*size) for size in (bound, imgsz)]
            notes.append(f"{file} takes images of {sizes[0]} alone: not timed with its checkpoint at {sizes[1]}.")
    return found, notes


def _dims(entry) -> list[int | None]:
    return [dim.dim_value or None for dim in entry.type.tensor_type.shape.dim]


def _load(path):
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        raise UserError(f"model '{path}' is no ONNX file, or was cut short") from error
