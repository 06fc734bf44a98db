"""What can be read off an ONNX file without running it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ds2d2_yolo.errors import UserError

# Places, among a node's inputs, of the two factors of its products; the quantized operators have scales between them
FACTORS = dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "MatMul", "ConvInteger", "MatMulInteger"), (0, 1))
FACTORS |= dict.fromkeys(("QLinearConv", "QLinearMatMul", "QGemm"), (0, 3))
# and of what else may be held: biases, and what batch norms consist of
BESIDES = {"Conv": (2,), "ConvTranspose": (2,), "Gemm": (2,), "QLinearConv": (8,), "QGemm": (6,)}
BESIDES |= {"BatchNormalization": (1, 2, 3, 4)}
UNCHANGED = {"DequantizeLinear", "Cast", "Identity", "Transpose", "Reshape"}  # as many numbers as their first input has


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


def onnx_parameters(path: str | Path) -> int | None:
    """Numbers held by the weights and biases of an ONNX file, quantized or not; None where there are none to see."""
    graph = _load(path).graph
    held = {tensor.name: int(np.prod(tensor.dims, dtype=np.int64)) for tensor in graph.initializer}
    sources = {node.output[0]: node.input[0] for node in graph.node if node.op_type in UNCHANGED}
    used = set()
    for node in graph.node:
        for place in (*FACTORS.get(node.op_type, ()), *BESIDES.get(node.op_type, ())):
            name = node.input[place] if place < len(node.input) else ""
            while name in sources and name not in held:
                name = sources[name]
            used |= {name} & held.keys()
    return sum(held[name] for name in used) or None


def onnx_layout(path: str | Path) -> Layout:
    """Shapes of input and output.

    Raises:
        UserError: It is no detector's file: that has one input of four dimensions, and its first output has three.
    """
    model = _load(path)
    held = {tensor.name for tensor in model.graph.initializer}
    inputs = [_dims(entry) for entry in model.graph.input if entry.name not in held]
    if len(inputs) != 1 or len(inputs[0]) != 4:
        raise UserError(f"model '{path}' takes no images: its inputs have the shapes {inputs}")
    batch, _, height, width = inputs[0]
    output = _dims(model.graph.output[0]) if model.graph.output else []
    if output and len(output) != 3:
        raise UserError(f"model '{path}' finds no boxes: its output has the shape {output}")
    raw = len(output) == 3 and output[2] != 6 and output[1]  # else boxes, score and class after NMS
    described = any(entry.key == "stride" for entry in model.metadata_props)
    imgsz = (height, width) if height and width else None
    return Layout(described, batch, imgsz, output[1] - 4 if raw else None)


def _dims(entry) -> list[int | None]:
    return [dim.dim_value or None for dim in entry.type.tensor_type.shape.dim]


def _load(path):
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        raise UserError(f"model '{path}' is no ONNX file, or was cut short") from error
