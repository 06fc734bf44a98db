import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ds2d2_yolo.errors import UserError
from ds2d2_yolo.report.onnx_file import Layout, onnx_layout, onnx_parameters


def written(path, inputs=(("x", [1, 3, 64, 96]),), output=(1, 7, 126), described=False):
    """A file of one convolution and one reshape; what it computes does not matter."""
    weights = {
        "w": np.zeros((4, 3, 3, 3), np.float32),
        "b": np.zeros(4, np.float32),
        "shape": np.array([1, -1], np.int64),
        "scale": np.ones(7, np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["y"], kernel_shape=[3, 3]),
        helper.make_node("Reshape", ["y", "shape"], ["z"]),
    ]
    entries = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs]
    ends = [helper.make_tensor_value_info("z", TensorProto.FLOAT, output)]
    graph = helper.make_graph(nodes, "g", entries, ends, [numpy_helper.from_array(v, k) for k, v in weights.items()])
    model = helper.make_model(graph)
    if described:
        helper.set_model_props(model, {"stride": "32"})
    onnx.save(model, str(path))
    return path


def test_weights_and_biases_are_counted_and_nothing_else(tmp_path):
    assert onnx_parameters(written(tmp_path / "m.onnx")) == 4 * 27 + 4


@pytest.mark.parametrize(
    ("shape", "output", "described", "expected"),
    [
        ([1, 3, 64, 96], (1, 7, 126), False, Layout(False, 1, (64, 96), 3)),
        ([4, 3, 64, 64], (4, 300, 6), True, Layout(True, 4, (64, 64), None)),
        (["batch", 3, "height", "width"], ("batch", 24, "anchors"), False, Layout(False, None, None, 20)),
        ([1, 3, "height", 64], ("batch", "rows", "columns"), False, Layout(False, 1, None, None)),
    ],
)
def test_shapes_are_read_where_they_are_fixed(tmp_path, shape, output, described, expected):
    assert onnx_layout(written(tmp_path / "m.onnx", [("x", shape)], output, described)) == expected


def test_files_that_are_no_detector_are_named(tmp_path):
    (tmp_path / "cut.onnx").write_bytes(written(tmp_path / "m.onnx").read_bytes()[:-40])
    with pytest.raises(UserError, match="cut.onnx.* cut short"):
        onnx_layout(tmp_path / "cut.onnx")
    for inputs in ([("x", [1, 512])], [("x", [1, 3, 8, 8]), ("sizes", [2])]):
        with pytest.raises(UserError, match="takes no images"):
            onnx_layout(written(tmp_path / "m.onnx", inputs))
    for output in ((1, 10), (1, 4, 8, 8)):
        with pytest.raises(UserError, match=r"m.onnx' finds no boxes: its output has the shape \[1, "):
            onnx_layout(written(tmp_path / "m.onnx", output=output))
