r"""Cutting DOTA into tiles: images a second next to Ultralytics' own splitting, and what training makes of both.

    python benchmarks/tiling.py --source path/to/dota --out benchmarks/results/tiling.csv

``--source`` holds ``images`` and ``labelTxt`` as distributed; its images are laid out in a grid (``--grid 3``: three by
three) to be as large as DOTA's. Both sides write 1024 px tiles, 200 px overlap and rotated boxes, as JPEG unless the
row says png, in turns, ``--rounds`` times.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from ultralytics.data.converter import convert_dota_to_yolo_obb
from ultralytics.data.split_dota import split_images_and_labels

from ds2d2_yolo.datasets import dota
from ds2d2_yolo.datasets.convert import convert
from ds2d2_yolo.datasets.one_image import Options
from ds2d2_yolo.datasets.source import Source
from ds2d2_yolo.datasets.tiles import Tiling


def main() -> None:
    """Time both and append a row each."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--source", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True, help="CSV to append to")
    p.add_argument("--images", type=int, default=6)
    p.add_argument("--grid", type=int, default=3)
    p.add_argument("--rounds", type=int, default=3)
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        objects = make_large(args.source, work / "large", args.images, args.grid)
        sides = {"ultralytics": ultralytics, "ds2d2, 1 thread": ours(1, "jpg"), "ds2d2": ours(0, "jpg")}
        sides["ds2d2, png"] = ours(0, "png")
        seconds, results = {name: [] for name in sides}, {}
        for _ in range(args.rounds):
            for name, side in sides.items():
                shutil.rmtree(work / "out", ignore_errors=True)
                began = time.perf_counter()
                side(work / "large", work / "out")
                seconds[name].append(time.perf_counter() - began)
                results[name] = inspect(work / "out")
        base = statistics.median(seconds["ultralytics"])
        for name, times in seconds.items():
            row = {"side": name, "images": args.images, "grid": args.grid, "objects": objects}
            row |= {"images_per_second": round(args.images / statistics.median(times), 3)}
            row |= {"speed_ratio": round(base / statistics.median(times), 3), **results[name]}
            row["device"] = f"{platform.machine()} CPU, {os.cpu_count()} processors"
            print(row)
            pd.DataFrame([row]).to_csv(args.out, mode="a", header=not args.out.exists(), index=False)


def make_large(source: Path, target: Path, number: int, grid: int) -> int:
    """Lay the source's images out in grids, in the folders both sides read; return how many objects an image has."""
    jobs = dota.plan(Source(source)).jobs
    for part in ("images/train", "labels/train_original", "DOTA/train/labelTxt"):
        (target / part).mkdir(parents=True)
    for i in range(number):
        job = jobs[i % len(jobs)]
        image, found = cv2.imread(str(job.image.where)), job.read()
        height, width = image.shape[:2]
        cv2.imwrite(str(target / "images/train" / f"P{i:04d}.png"), np.tile(image, (grid, grid, 1)))
        lines = []
        for x, y in ((x, y) for y in range(grid) for x in range(grid)):
            corners = (found.corners + (x * width, y * height)).reshape(-1, 8)
            for kind, row in zip(found.classes, corners.tolist(), strict=True):
                lines.append(f"{' '.join(f'{v:g}' for v in row)} {dota.NAMES[kind]} 0\n")
        for part in ("labels/train_original", "DOTA/train/labelTxt"):
            (target / part / f"P{i:04d}.txt").write_text("".join(lines))
    (target / "DOTA/train/images").symlink_to(target / "images/train")
    return len(lines)


def ultralytics(large: Path, out: Path) -> None:
    """Convert the labels and cut, as Ultralytics' documentation does."""
    (large / "images/val").mkdir(exist_ok=True)
    (large / "labels/val_original").mkdir(exist_ok=True)
    convert_dota_to_yolo_obb(str(large))
    split_images_and_labels(str(large), str(out), "train")


def ours(workers: int, form: str):
    """Return our side with so many threads (0: all)."""

    def side(large: Path, out: Path) -> None:
        source = Source(large / "DOTA")
        convert(dota.plan(source), out, Options(rotated=True, tiling=Tiling(format=form)), source.root, workers)

    return side


def inspect(out: Path) -> dict:
    """Count tiles, boxes, and the boxes that reach over their tile's edge by more than a thousandth of it."""
    images, labels = list((out / "images/train").iterdir()), list((out / "labels/train").glob("*.txt"))
    rows = [np.array(line.split()[1:], float) for path in labels for line in path.read_text().splitlines()]
    over = sum(bool(np.abs(row - 0.5).max() > 0.501) for row in rows)
    return {"tiles": len(images), "boxes": len(rows), "over_the_edge": over}


if __name__ == "__main__":
    main()
