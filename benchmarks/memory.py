r"""Memory that cutting one large image into tiles takes at its peak, beside what its pixels take.

    python benchmarks/memory.py --edge 30000 --out benchmarks/results/memory.csv

The image is drawn (weak noise, so that its PNG is half as large as its pixels) and converted as DOTA, each by a process
of its own; the peak is that of the second one's resident memory. The process alone is measured by an image of 64 x 64.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

_DRAW = """
import sys, cv2, numpy as np
edge, path = int(sys.argv[1]), sys.argv[2]
noise = np.random.default_rng(0).integers(120, 126, (edge, edge, 3), np.uint8)
cv2.imwrite(path, noise, [cv2.IMWRITE_PNG_COMPRESSION, 1])
"""
_CONVERT = """
import resource, sys
from ds2d2_yolo.converting import main
main(["dota", sys.argv[1], sys.argv[2], "workers=1", "format=jpg"])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""


def main() -> None:
    """Measure and append a row."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--edge", type=int, default=30000, help="of the image, in pixels")
    p.add_argument("--out", type=Path, required=True, help="CSV to append to")
    args = p.parse_args()
    alone, *_ = measure(64)
    peak, file, seconds = measure(args.edge)
    row = {"edge": args.edge, "pixels_gb": _gb(3 * args.edge**2), "file_gb": _gb(file), "peak_gb": _gb(peak)}
    row |= {"process_alone_gb": _gb(alone), "seconds": round(seconds, 1)}
    row["device"] = f"{platform.machine()} CPU, {os.cpu_count()} processors"
    print(row)
    pd.DataFrame([row]).to_csv(args.out, mode="a", header=not args.out.exists(), index=False)


def measure(edge: int) -> tuple[int, int, float]:
    """Draw an image and cut it; return peak and file size in bytes, and the seconds that the cutting process took."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "DOTA")
        for part in ("images", "labelTxt"):
            (source / "train" / part).mkdir(parents=True)
        image = source / "train/images/P0001.png"
        (source / "train/labelTxt/P0001.txt").write_text("10 10 60 10 60 40 10 40 plane 0\n")
        subprocess.run([sys.executable, "-c", _DRAW, str(edge), str(image)], check=True)
        began = time.perf_counter()
        command = [sys.executable, "-c", _CONVERT, str(source), str(Path(folder, "tiles"))]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return int(done.stdout.split()[-1]), image.stat().st_size, time.perf_counter() - began


def _gb(size: int) -> float:
    return round(size / 1e9, 2)


if __name__ == "__main__":
    main()
