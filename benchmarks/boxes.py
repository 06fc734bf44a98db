r"""What crowds cost the explicit stream: scale weight and loss, forward and backward, with few boxes and with many.

    python benchmarks/boxes.py --imgsz 416 640 --batch 2 8 --out benchmarks/results/boxes.csv

The adapted student's maps and the teacher's are YOLO11s' in size (128, 256 and 512 channels at strides 8, 16, 32). Both
counts of boxes take turns in one process; the ratio of the medians counts.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from ds2d2_yolo.method.explicit import explicit_loss
from ds2d2_yolo.method.scale_weight import density_independent_scale_weight

LEVELS = {8: 128, 16: 256, 32: 512}


def main() -> None:
    """Time every size and append a row each."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--imgsz", nargs="+", type=int, default=[640])
    p.add_argument("--batch", nargs="+", type=int, default=[8])
    p.add_argument("--boxes", nargs=2, type=int, default=[10, 3000], help="an image: few, many")
    p.add_argument("--rounds", type=int, default=15)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--out", type=Path)
    args = p.parse_args()
    for imgsz in args.imgsz:
        for batch in args.batch:
            row = measure(imgsz, batch, args)
            print(row, flush=True)
            if args.out:
                pd.DataFrame([row]).to_csv(args.out, mode="a", header=not args.out.exists(), index=False)


def measure(imgsz: int, batch: int, args: argparse.Namespace) -> dict:
    """Return one row: many boxes' cost as a multiple of few boxes', by what of it is measured."""
    torch.manual_seed(0)
    maps = [torch.rand(batch, c, imgsz // s, imgsz // s, device=args.device) for s, c in LEVELS.items()]
    students = [torch.rand_like(m).requires_grad_() for m in maps]
    crowds = [some_boxes(count, imgsz, batch, args.device) for count in args.boxes]
    seconds = {(part, i): [] for part in ("weight", "forward", "step") for i in (0, 1)}
    for turn in range(args.rounds + 1):
        for i, (boxes, index) in enumerate(crowds):
            begun = now(args.device)
            weights = [weight(boxes, index, batch, imgsz, m) for m in maps]
            weighed = now(args.device)
            terms = explicit_loss(students, maps, weights, normalize="channel")
            forward = now(args.device)
            (terms["ex_low"] + terms["ex_high"]).backward()
            done = now(args.device)
            if turn:
                for part, moment in (("weight", weighed), ("forward", forward), ("step", done)):
                    seconds[part, i].append(moment - begun)
    t = {key: statistics.median(values) for key, values in seconds.items()}
    row = {"imgsz": imgsz, "batch": batch, "few": args.boxes[0], "many": args.boxes[1], "rounds": args.rounds}
    row["weight_of_step"] = round(t["weight", 0] / t["step", 0], 3)
    row |= {f"{part}_many_by_few": round(t[part, 1] / t[part, 0], 3) for part in ("weight", "forward", "step")}
    name = torch.cuda.get_device_name() if args.device != "cpu" else f"{platform.machine()} CPU"
    return {**row, "device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def some_boxes(count: int, imgsz: int, batch: int, device: str) -> tuple[Tensor, Tensor]:
    """Return so many boxes an image in pixels, most of them small, and whose they are."""
    start = torch.rand(batch * count, 2, device=device) * 0.9 * imgsz
    size = (0.01 + 0.1 * torch.rand(batch * count, 2, device=device) ** 2) * imgsz
    return torch.cat((start, start + size), 1), torch.arange(batch, device=device).repeat_interleave(count)


def weight(boxes: Tensor, index: Tensor, batch: int, imgsz: int, features: Tensor) -> Tensor:
    """Return the weight map for a level's low band."""
    h, w = features.shape[-2:]
    return density_independent_scale_weight(boxes, index, batch, (imgsz, imgsz), ((h + 1) // 2, (w + 1) // 2))


def now(device: str) -> float:
    """Return seconds; on a CPU those that this process has used."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
