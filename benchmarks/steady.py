r"""Whether the memory of a long run stays flat: a distilled training of changing image sizes, measured as it goes.

    python benchmarks/steady.py --steps 300 --out benchmarks/results/steady.csv

Trains a small student on drawn scenes, every batch of another size, and notes the process's memory every so many steps.
What counts is how it grows from one third of the run to the next, once every size has been seen.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
from pathlib import Path

import pandas as pd
import psutil
import torch
from ultralytics.utils.callbacks import default_callbacks

import ds2d2_yolo  # noqa: F401  sets Ultralytics' switches
from ds2d2_yolo.datasets import demo
from ds2d2_yolo.demo import narrower
from ds2d2_yolo.engine.train import train

BATCHES = 30  # an epoch


def main() -> None:
    """Train, and append a row."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--steps", type=int, default=300)
    p.add_argument("--imgsz", type=int, default=160)
    p.add_argument("--out", type=Path)
    args = p.parse_args()
    process, seen = psutil.Process(), []

    def note(trainer) -> None:
        gpu = torch.cuda.memory_reserved() if torch.cuda.is_available() else 0
        seen.append((process.memory_info().rss + gpu) / 2**20)

    with tempfile.TemporaryDirectory() as folder:
        teacher = run(
            Path(folder), args, "teacher", 1, model=str(narrower("yolo11n.yaml", 0.125, Path(folder) / "t.yaml"))
        )
        default_callbacks["on_train_batch_end"].append(note)
        try:
            student = str(narrower("yolo11n.yaml", 0.0625, Path(folder) / "s.yaml"))
            epochs = -(-args.steps // BATCHES)
            amplifier = {"amplifier_epochs": 1}
            run(
                Path(folder), args, "student", epochs, model=student, teacher=str(teacher), multi_scale=0.5, **amplifier
            )
        finally:
            default_callbacks["on_train_batch_end"].remove(note)
    seen = seen[BATCHES:]  # without the amplifier's epoch
    third = len(seen) // 3
    thirds = [round(statistics.median(seen[i * third : (i + 1) * third])) for i in range(3)]
    row = {"steps": len(seen), "imgsz": args.imgsz, "multi_scale": 0.5, "first third MB": thirds[0]}
    row |= {"second third MB": thirds[1], "last third MB": thirds[2], "last by second": round(thirds[2] / thirds[1], 3)}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    row |= {"highest MB": round(max(seen)), "device": device, "torch": torch.__version__}
    print(row)
    if args.out:
        pd.DataFrame([row]).to_csv(args.out, mode="a", header=not args.out.exists(), index=False)


def run(folder: Path, args: argparse.Namespace, name: str, epochs: int, **settings) -> Path:
    """Train on drawn scenes."""
    data = demo.prepare(folder / "scenes", train=4 * BATCHES, val=8, size=args.imgsz)
    common = {"data": str(data), "project": str(folder), "name": name, "epochs": epochs, "imgsz": args.imgsz}
    return train({**common, "batch": 4, "nbs": 4, "val": False, "plots": False, **settings})


if __name__ == "__main__":
    main()
