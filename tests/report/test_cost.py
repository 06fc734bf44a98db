import json
import math
from functools import partial
from types import SimpleNamespace

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import quantization
from ultralytics import YOLO
from ultralytics.utils.torch_utils import get_flops

from ds2d2_yolo.report import cost, latency
from ds2d2_yolo.report.coco import onnx_parameters
from ds2d2_yolo.report.cost import file_mb, gflops, measure, measure_all, onnx_gflops, parameters
from ds2d2_yolo.report.latency import prepare
from tests.helpers.checkpoints import narrow_detector, save_checkpoint
from tests.helpers.costing import one_convolution, pictures

QUICK = {"imgsz": 64, "batch": 2, "device": "cpu", "rounds": 3, "memory": False}


@pytest.fixture(autouse=True)
def cold(monkeypatch):
    """Timed without the time that clocks need to settle."""
    monkeypatch.setattr(latency, "WARM_UP_S", 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """images/, best.pt, the same as best.onnx."""
    folder = tmp_path_factory.mktemp("cost")
    (folder / "images").mkdir()
    for i, picture in enumerate(pictures()):
        cv2.imwrite(str(folder / "images" / f"{i}.png"), picture)
    save_checkpoint(folder / "best.pt", narrow_detector("attention"))
    YOLO(folder / "best.pt").export(format="onnx", imgsz=64, device="cpu", verbose=False)
    return folder


@pytest.mark.parametrize("family", ["yolov8", "yolo26"])
def test_flops_of_a_checkpoint_are_those_ultralytics_counts(tmp_path, family):
    runner = prepare(save_checkpoint(tmp_path / "best.pt", narrow_detector(family)), pictures(), (64, 128), 1, "cpu")
    assert gflops("best.pt", runner) == pytest.approx(get_flops(runner.loaded.module, [64, 128]), rel=1e-6)


def test_a_checkpoint_and_its_onnx_file_cost_the_same(folder):
    first, second = measure_all([folder / "best.pt", folder / "best.onnx"], folder / "images", **QUICK)
    assert first.gflops == pytest.approx(second.gflops, rel=1e-6) and first.gflops > 0
    assert first.parameters == pytest.approx(second.parameters, rel=1e-3)  # equal tensors are stored once
    fused = YOLO(folder / "best.pt").model.fuse(verbose=False)
    assert first.parameters == sum(p.numel() for p in fused.parameters())
    assert first.imgsz == second.imgsz == (64, 64)
    assert [(t.runtime, t.batch, t.rounds) for t in first.latency] == [("PyTorch", 1, 3), ("PyTorch", 2, 3)]
    assert [(t.runtime, t.batch) for t in second.latency] == [("ONNX Runtime", 1)]  # the file takes one at a time
    assert (first.batch, second.batch) == (2, 1) and first.peak_mb is None
    assert first.device == first.latency[0].device


def test_an_exported_file_can_be_timed_beside_its_checkpoint(folder):
    files = {"a": folder / "best.pt", "b": folder / "best.onnx"}
    result = measure(files["a"], folder / "images", onnx={files["a"]: files["b"]}, **QUICK)
    assert [(t.runtime, t.batch) for t in result.latency] == [("PyTorch", 1), ("PyTorch", 2), ("ONNX Runtime", 1)]
    assert result.file_mb == files["a"].stat().st_size / 1e6
    again = json.loads(json.dumps(result.as_dict()))
    assert again["latency"][2]["inference"]["median"] == result.latency[2].inference.median


def test_peak_memory_is_taken_at_the_batch(folder, monkeypatch):
    asked, how = [], {"end2end": True, "fp16": False}
    monkeypatch.setattr(
        cost, "peak_memory", lambda path, images, *rest, **k: asked.append((images.shape, rest, k)) or 7
    )
    assert measure(folder / "best.pt", folder / "images", **{**QUICK, "memory": True}, **how).peak_mb == 7
    assert asked == [((2, 64, 64, 3), (2, "cpu"), how)]


def test_peak_memory_that_cannot_be_told_is_left_out(folder, monkeypatch):
    def fails(*_):
        raise RuntimeError("out of everything")

    monkeypatch.setattr(cost, "peak_memory", fails)
    assert measure(folder / "best.onnx", folder / "images", **{**QUICK, "memory": True}).peak_mb is None


def test_one_convolution_costs_what_it_must(tmp_path):
    for name, layout in {
        "free": ("batch", ("h", "w"), 3),
        "bound": (2, (32, 64), 3),
        "grey": ("b", (32, 64), 1),
    }.items():
        channels = layout[2]
        file = one_convolution(tmp_path / f"{name}.onnx", *layout)
        runner = prepare(file, pictures(channels=channels), (32, 64), 1, "cpu")
        assert gflops(file, runner) == 2 * (32 * 64 / 4) * 7 * 4 * channels / 1e9
        assert parameters(file, runner) == onnx_parameters(file) == 7 * (4 * channels + 1)


def products(path, size=8):
    """A convolution's transpose and both matrix products; `size` is the number of rows that are multiplied."""
    a, b, c = (np.ones(shape, np.float32) for shape in ((3, 5, 2, 2), (4, 6), (6, 7)))
    nodes = [
        helper.make_node("ConvTranspose", ["images", "a"], ["wide"], strides=[2, 2]),
        helper.make_node("Reshape", ["wide", "shape"], ["rows"]),
        helper.make_node("Gemm", ["rows", "b"], ["more"], transA=1),
        helper.make_node("MatMul", ["more", "c"], ["output"]),
    ]
    constants = {"a": a, "b": b, "c": c, "shape": np.array([4, -1], np.int64)}
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, size, size])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return path


def test_every_kind_of_product_is_counted(tmp_path):
    rows = 5 * 16 * 16 // 4
    expected = 2 * (3 * 8 * 8 * 5 * 4 + rows * 6 * 4 + rows * 7 * 6)
    assert onnx_gflops(products(tmp_path / "a.onnx"), (8, 8)) == expected / 1e9


def test_flops_that_hang_on_the_image_are_unknown(tmp_path):
    file = one_convolution(tmp_path / "a.onnx")
    model = onnx.load(str(file))
    model.graph.node.append(helper.make_node("NonZero", ["output"], ["places"]))
    model.graph.node.append(helper.make_node("Cast", ["places"], ["numbers"], to=TensorProto.FLOAT))
    model.graph.node.append(helper.make_node("MatMul", ["numbers", "other"], ["more"]))
    model.graph.initializer.append(numpy_helper.from_array(np.ones((9, 2), np.float32), "other"))
    onnx.save(model, str(file))
    assert onnx_gflops(file, (32, 32)) is None


def test_quantized_files_count_as_the_file_that_they_were_made_from(tmp_path):
    """Weights behind DequantizeLinear, and the integer operators of dynamic and static quantization."""
    file = one_convolution(tmp_path / "a.onnx", 1, (32, 64))
    counted = onnx_gflops(file, (32, 64))
    quantization.quantize_dynamic(file, tmp_path / "dynamic.onnx")
    assert onnx_parameters(tmp_path / "dynamic.onnx") == 7 * 4 * 3  # its bias is added by a node of its own
    assert onnx_gflops(tmp_path / "dynamic.onnx", (32, 64)) == counted > 0
    for form in quantization.QuantFormat:
        seen = iter([{"images": np.ones((1, 3, 32, 64), np.float32)}])
        images = SimpleNamespace(get_next=partial(next, seen, None))
        quantization.quantize_static(file, tmp_path / f"{form}.onnx", images, quant_format=form)
        operators = {node.op_type for node in onnx.load(str(tmp_path / f"{form}.onnx")).graph.node}
        assert "QLinearConv" in operators or "DequantizeLinear" in operators
        assert onnx_parameters(tmp_path / f"{form}.onnx") == onnx_parameters(file) == 7 * (4 * 3 + 1)
        assert onnx_gflops(tmp_path / f"{form}.onnx", (32, 64)) == counted


def test_what_is_not_seen_is_not_said_to_be_nothing(tmp_path):
    file = one_convolution(tmp_path / "a.onnx")
    model = onnx.load(str(file))
    model.graph.node[0].op_type = "ConvolutionOfAnotherDomain"
    onnx.save(model, str(file))
    assert onnx_parameters(file) is None and onnx_gflops(file, (32, 32)) is None


def test_nodes_may_stand_in_any_order(tmp_path):
    file = products(tmp_path / "a.onnx")
    counted, model = onnx_gflops(file, (8, 8)), onnx.load(str(file))
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, str(file))
    assert onnx_gflops(file, (8, 8)) == counted


def test_a_folder_weighs_what_its_files_do(tmp_path):
    (tmp_path / "m" / "deep").mkdir(parents=True)
    (tmp_path / "m" / "a.bin").write_bytes(b"0" * 1000)
    (tmp_path / "m" / "deep" / "b.bin").write_bytes(b"0" * 500)
    assert file_mb(tmp_path / "m") == 0.0015 and file_mb(tmp_path / "m" / "a.bin") == 0.001


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_named_and_its_memory_counted(folder):
    result = measure(folder / "best.pt", folder / "images", **{**QUICK, "device": "0", "memory": True})
    assert result.device == torch.cuda.get_device_name(0)
    assert 4 * result.parameters / 1e6 < result.peak_mb < 2000
    assert all(math.isfinite(t.total.median) for t in result.latency)
