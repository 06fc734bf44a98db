"""What detectors cost: parameters, arithmetic, size of the file, memory, and the time an image takes.

cost = measure("best.pt", "images/val", imgsz=640)
print(cost.parameters, cost.gflops, cost.latency[0].inference.median)
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from graphlib import TopologicalSorter
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from ultralytics.utils import LOGGER, TQDM

from ds2d2_yolo.errors import one_line
from ds2d2_yolo.report.latency import DEFAULT_NMS, NMS, Latency, Runner, latencies, sample
from ds2d2_yolo.report.memory import peak_memory
from ds2d2_yolo.report.onnx_file import FACTORS, onnx_parameters
from ds2d2_yolo.report.runtimes import load


@dataclass(frozen=True)
class Cost:
    """What `measure` found; None where a file does not tell.

    `parameters`: of the fused model, batch norms folded into the convolutions; `gflops`: 10^9 additions and
    multiplications of convolutions and matrix products for one image of `imgsz` (height, width); `file_mb` and
    `peak_mb`: 10^6 bytes, the latter of weights and inference at `batch`, beyond what the libraries take; `device`: the
    GPU, or CPU and threads; `latency`: at a batch of 1 and at `batch`, in each runtime.
    """

    parameters: int | None
    gflops: float | None
    file_mb: float
    device: str
    imgsz: tuple[int, int]
    batch: int
    peak_mb: float | None
    latency: tuple[Latency, ...]

    def as_dict(self) -> dict:
        """Plain values, for JSON."""
        return asdict(self)


def measure(model_path, images, imgsz=640, batch: int = 16, device="", **options) -> Cost:
    """What one detector costs; `measure_all` has the arguments."""
    return measure_all([model_path], images, imgsz, batch, device, **options)[0]


def measure_all(
    models: Sequence,
    images,
    imgsz=640,
    batch: int = 16,
    device="",
    onnx: dict | None = None,
    rounds: int = 20,
    memory: bool = True,
    nms: NMS = DEFAULT_NMS,
    verbose: bool = False,
    **how,
) -> list[Cost]:
    """What detectors cost, timed in turns so that what else the machine does falls on all alike.

    Files that are bound to an image or batch size (most .onnx files) are measured at that.

    Args:
        models: Files, .pt or whatever else Ultralytics loads.
        images: Folder, file, glob or list of image files, of which up to 32 are used.
        imgsz: Edge, or height and width, that images are letterboxed to.
        batch: Images at a time, beside 1.
        device: As Ultralytics has it: cpu, 0, ...
        onnx: Files to time in ONNX Runtime too, by the model (as in `models`) that they were exported from.
        rounds: Turns of each.
        memory: Take the peak memory, for which each model is loaded in a process of its own.
        nms: What post-processing keeps.
        verbose: Show bars.
        how: See ``load`` in ``runtimes``: end2end, fp16.

    Raises:
        UserError: A file is missing, does not load or is no detector, or there are no images.
    """
    read: dict[int, list[np.ndarray]] = {}

    def runners_of(path) -> list[Runner]:
        loaded = load(path, device, **how)
        if loaded.channels not in read:
            read[loaded.channels] = sample(images, loaded.channels)
        runner = Runner(loaded, read[loaded.channels], imgsz, batch, nms)
        return [runner] if runner.batch == 1 or loaded.batch else [runner.at(1), runner]

    groups = [[runners_of(path) for path in (model, (onnx or {}).get(model)) if path] for model in models]
    runners = [runner for group in groups for part in group for runner in part]
    timed = dict(zip(runners, latencies(runners, rounds, verbose), strict=True))
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # memory is measured in processes of its own, which need it
    costs, pairs = [], list(zip(models, groups, strict=True))
    for model, group in TQDM(pairs, desc="cost and memory", disable=not verbose):
        times = tuple(timed[runner] for part in group for runner in part)
        costs.append(_cost(model, group[0][-1], times, _peak(model, group[0][-1], device, how) if memory else None))
    return costs


def _cost(path, runner: Runner, latency: tuple[Latency, ...], peak_mb: float | None) -> Cost:
    return Cost(
        parameters=parameters(path, runner),
        gflops=gflops(path, runner),
        file_mb=file_mb(path),
        device=runner.loaded.hardware,
        imgsz=runner.size,
        batch=runner.batch,
        peak_mb=peak_mb,
        latency=latency,
    )


def parameters(path, runner: Runner) -> int | None:
    """Parameters that inference carries."""
    if runner.loaded.module is not None:
        return sum(p.numel() for p in runner.loaded.module.parameters())
    return onnx_parameters(path) if Path(path).suffix == ".onnx" else None


def gflops(path, runner: Runner) -> float | None:
    """10^9 additions and multiplications for one image; None where the file does not tell.

    Counted while a real image passes: parts of two-stage detectors work on as many proposals as they find.
    """
    if runner.loaded.module is not None:
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            runner.loaded.run(runner.preprocess(runner.images[:1]))
        return counter.get_total_flops() / 1e9
    return onnx_gflops(path, runner.size) if Path(path).suffix == ".onnx" else None


def onnx_gflops(path, size: tuple[int, int]) -> float | None:
    """10^9 additions and multiplications of an ONNX file for an image of (height, width), by the shapes of its graph.

    None where a convolution's or matrix product's shape hangs on what is in the image, or none is seen.
    """
    import onnx

    model = onnx.load(str(path))
    graph = model.graph
    _sort(graph.node)
    constants = {tensor.name for tensor in graph.initializer}
    dims = next(entry for entry in graph.input if entry.name not in constants).type.tensor_type.shape.dim
    batch = dims[0].dim_value or 1
    for dim, value in zip(dims, (batch, dims[1].dim_value or 3, *size), strict=True):
        dim.dim_value = value
    del graph.value_info[:]  # shapes of before
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shapes[value.name] = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    counts = [_node_flops(node, shapes) for node in graph.node if node.op_type in FACTORS]
    return None if None in counts or not counts else sum(counts) / batch / 1e9


def _sort(nodes) -> None:
    """Put nodes behind those whose outputs they take: some exporters do not, and shapes are inferred in one pass."""
    source = {name: i for i, node in enumerate(nodes) for name in node.output}
    before = {i: {source[name] for name in node.input if name in source} for i, node in enumerate(nodes)}
    if all(j < i for i, needed in before.items() for j in needed):
        return
    ordered = [deepcopy(nodes[i]) for i in TopologicalSorter(before).static_order()]
    del nodes[:]
    nodes.extend(ordered)


def _node_flops(node, shapes: dict[str, list[int]]) -> int | None:
    """Twice the products of a node, None where a shape is unknown."""
    places = FACTORS[node.op_type]
    a, b, out = (shapes.get(name, []) for name in (*(node.input[place] for place in places), node.output[0]))
    if not (a and b and out and all((*a, *b, *out))):
        return None
    if node.op_type in ("Conv", "ConvInteger", "QLinearConv"):
        return 2 * prod(out) * prod(b[1:])
    if node.op_type == "ConvTranspose":
        return 2 * prod(a) * prod(b[1:])
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return 2 * prod(out) * a[0 if transposed else -1]


def file_mb(path) -> float:
    """Size of a file, or of all files in a folder, in 10^6 bytes."""
    path = Path(path)
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files) / 1e6


def _peak(path, runner: Runner, device, how: dict) -> float | None:
    try:
        return peak_memory(path, runner.letterbox(runner.pick()), runner.batch, device, **how)
    except (RuntimeError, OSError, ValueError) as error:
        LOGGER.warning(f"peak memory of '{path}' is unknown: {one_line(str(error))}")
        return None
