"""What a training step of our RetinaNet and Faster R-CNN costs, next to torchvision's on the same batch and weights.

    python benchmarks/detectors.py --imgsz 512 --batch 2 --out benchmarks/results/detectors.csv

Both take a step (forward, losses, backward, SGD) in turns, in one process; the ratio of the medians is what counts.
Memory is that of a process of its own for each: what five steps need at their peak beyond the model (on a CPU by Linux'
count of resident pages, on a GPU by PyTorch's allocator).
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import statistics
import time
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

import ds2d2_yolo  # noqa: F401  sets Ultralytics' switches
from ds2d2_yolo.detectors.boxes import targets_of
from ds2d2_yolo.detectors.modules import RESNETS
from ds2d2_yolo.detectors.registry import DetectorModel
from ds2d2_yolo.paths import CFG

CLASSES, RATIOS = 20, (0.5, 1.0, 2.0)


def main() -> None:
    """Time every model and print, and append, one row each."""
    args = parse()
    for name in args.models:
        ours, theirs = pair(name, args)
        steps = {"ours": step_of(ours, args, False), "torchvision": step_of(theirs, args, True)}
        times = interleaved(steps, args)
        memory = {who: peak(name, who, args) for who in steps}
        row = {"model": name, "imgsz": args.imgsz, "batch": args.batch, "boxes": args.boxes, "rounds": args.rounds}
        row |= {"time_ratio": round(times["ours"] / times["torchvision"], 3)}
        row |= {"memory_ratio": round(memory["ours"] / memory["torchvision"], 3)}
        row |= {f"{who}_mb": round(memory[who]) for who in memory}
        row |= {"device": torch.cuda.get_device_name() if args.device != "cpu" else f"{platform.machine()} CPU"}
        row |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
        print(row, flush=True)
        if args.out:
            pd.DataFrame([row]).to_csv(args.out, mode="a", header=not args.out.exists(), index=False)


def parse() -> argparse.Namespace:
    """Read the command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--models", nargs="+", default=["retinanet-r18", "faster-rcnn-r18"])
    p.add_argument("--imgsz", type=int, default=512)
    p.add_argument("--batch", type=int, default=2)
    p.add_argument("--boxes", type=int, default=30, help="an image")
    p.add_argument("--rounds", type=int, default=8)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--out", type=Path)
    return p.parse_args()


def pair(name: str, args: argparse.Namespace) -> tuple[nn.Module, nn.Module]:
    """Return our model and torchvision's with the same weights."""
    torch.manual_seed(0)
    ours = DetectorModel(str(CFG / "models" / f"{name}.yaml"), nc=CLASSES, verbose=False)
    net = RESNETS[ours.model[1].name]()
    options = ours.model[-1].options
    if name.startswith("retinanet"):
        steps = [2 ** (i / 3) for i in range(3)]
        anchors = AnchorGenerator(tuple(tuple(4 * s * t for t in steps) for s in options.strides), (RATIOS,) * 5)
        backbone = _resnet_fpn_extractor(net, 5, [2, 3, 4], LastLevelP6P7(256, 256))
        theirs = RetinaNet(backbone, CLASSES, args.imgsz, args.imgsz, anchor_generator=anchors)
    else:
        anchors = AnchorGenerator(tuple((8 * s,) for s in options.strides), (RATIOS,) * 5)
        backbone, few = _resnet_fpn_extractor(net, 5), {"rpn_post_nms_top_n_train": options.proposals}
        theirs = FasterRCNN(
            backbone, CLASSES + 1, min_size=args.imgsz, max_size=args.imgsz, rpn_anchor_generator=anchors, **few
        )
    layers = {1: "backbone.", 2: "backbone.", 3: ""}
    state = {}
    for key, value in ours.state_dict().items():
        _, layer, rest = key.split(".", 2)
        state[layers[int(layer)] + rest] = value
    theirs.load_state_dict(state)
    return ours.train().to(args.device), theirs.train().to(args.device)


def step_of(model: nn.Module, args: argparse.Namespace, torchvisions: bool):
    """Return a function that makes one training step on one fixed batch of random boxes."""
    generator = torch.Generator().manual_seed(0)
    count = args.batch * args.boxes
    size = 0.02 + 0.1 * torch.rand(count, 2, generator=generator)
    batch = {"img": torch.rand(args.batch, 3, args.imgsz, args.imgsz, generator=generator).to(args.device)}
    batch["bboxes"] = torch.cat([0.1 + 0.8 * torch.rand(count, 2, generator=generator), size], 1)
    batch["cls"] = torch.randint(0, CLASSES, (count, 1), generator=generator).float()
    batch["batch_idx"] = torch.arange(args.batch).repeat_interleave(args.boxes).float()
    targets = targets_of(batch, background=int(isinstance(model, FasterRCNN)))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def step() -> None:
        loss = sum(model(list(batch["img"]), targets).values()) if torchvisions else model.loss(batch)[0].sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if args.device != "cpu":
            torch.cuda.synchronize()

    return step


def interleaved(steps: dict, args: argparse.Namespace) -> dict[str, float]:
    """Return the median seconds of each step, taken in turns after one for warming up."""
    seconds = {name: [] for name in steps}
    for turn in range(args.rounds + 1):
        for name, step in steps.items():
            begun = time.perf_counter()
            step()
            if turn:
                seconds[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak(name: str, who: str, args: argparse.Namespace) -> float:
    """Return the megabytes that steps need beyond the model, measured in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (name, who, args))


def _peak(name: str, who: str, args: argparse.Namespace) -> float:
    step = step_of(pair(name, args)[who != "ours"], args, who != "ours")
    on_gpu = args.device != "cpu"
    if not on_gpu:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = torch.cuda.memory_allocated() / 2**20 if on_gpu else _resident("VmRSS")
    for _ in range(5):
        step()
    return (torch.cuda.max_memory_allocated() / 2**20 if on_gpu else _resident("VmHWM")) - before


def _resident(field: str) -> float:
    """Return a field of this process's status in megabytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


if __name__ == "__main__":
    main()
