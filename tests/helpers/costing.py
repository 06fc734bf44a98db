"""Models whose cost is known beforehand, and pictures to run them on."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES = 3


def pictures(count=3, height=48, width=64, channels=3):
    """Noise (H, W, C) uint8, of one height but for the last."""
    rng = np.random.default_rng(0)
    shapes = [(height, width, channels)] * (count - 1) + [(2 * height, width, channels)]
    return [rng.integers(0, 256, shape, np.uint8) for shape in shapes]


def one_convolution(path, batch="batch", size=("height", "width"), channels=3, score=0.9, **metadata):
    """An ONNX file of one convolution, 2 x 2 cells with stride 2: raw outputs (B, 4 + CLASSES, cells).

    It has 7 * (4 * channels + 1) parameters, and for an image of H x W pixels H * W / 4 * 7 * 4 * channels products.
    """
    outputs = 4 + CLASSES
    weight = np.zeros((outputs, channels, 2, 2), np.float32)
    bias = np.array([8, 8, 4, 4, score, 0.1, 0.1], np.float32)  # the same box everywhere
    constants = {"weight": weight, "bias": bias, "shape": np.array([0, outputs, -1], np.int64)}
    nodes = [
        helper.make_node("Conv", ["images", "weight", "bias"], ["map"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Reshape", ["map", "shape"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "one convolution",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, channels, *size])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, outputs, "cells"])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, {key: str(value) for key, value in metadata.items()})
    onnx.save(model, str(path))
    return path
