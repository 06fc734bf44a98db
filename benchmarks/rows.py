"""Rows of ``accuracy.py``: written, found again, and summed up; and settings as its command line has them."""

from __future__ import annotations

import csv
import platform
import subprocess
from pathlib import Path

import pandas as pd
import torch
from ultralytics.cfg import smart_value

import ds2d2_yolo


def pairs(text: str) -> dict:
    """Turn ``a=1,b=x`` into a dict with Python values."""
    return {k: smart_value(v) for k, v in (item.split("=", 1) for item in text.split(",") if item)}


def commit() -> str:
    """Return what the code is: Git's commit, "+" where the package differs from it; empty where Git does not know.

    ``settings`` names what an arm was given, and a default is another one after a while.
    """
    git = ["git", "-C", str(Path(ds2d2_yolo.__file__).parent)]
    try:
        asked = [["rev-parse", "--short=8", "HEAD"], ["status", "--porcelain", "--", "."]]
        head, changes = (subprocess.run([*git, *a], capture_output=True, text=True, check=True).stdout for a in asked)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.strip() + "+" * bool(changes)


def device_name(device: str) -> str:
    """Return the GPU's or the processor's name."""
    if torch.cuda.is_available() and device != "cpu":
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def append(path: Path, row: dict) -> None:
    """Append a row, with a header in a new file; a file with fewer columns gets them, empty in its rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []
    if rows and set(row) <= set(rows[0]):
        with open(path, "a", newline="") as file:
            csv.DictWriter(file, rows[0]).writerow(row)
        return
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys([*(rows[0] if rows else ()), *row])), restval="")
        writer.writeheader()
        writer.writerows([*rows, row])


def done(path: Path, run: dict) -> bool:
    """Whether the CSV already has this run."""
    return path.exists() and run["run"] in set(pd.read_csv(path, dtype={"run": str}).run)


def print_summary(path: Path) -> None:
    """Print mean and spread an arm, and the paired difference to plain over common seeds."""
    if not path.exists():
        print("no run has ended yet")
        return
    rows = pd.read_csv(path, dtype={"run": str, "teacher": str})  # hashes: 7e187195 is no number
    for setting, group in rows.groupby(["data", "student", "imgsz", "epochs", "recipe"]):
        print("\n" + ", ".join(str(s) for s in setting))
        plain = group[group.arm == "plain"].set_index("seed")
        for (arm, own, teacher), runs in group.groupby(["arm", "settings", "teacher"], sort=False, dropna=False):
            runs = runs.set_index("seed")
            if len(group[group.arm == arm].groupby(["settings", "teacher"], dropna=False)) > 1:
                print(f"  {arm} with {own}, teacher {teacher}:")
            line = f"  {arm:22s} n={len(runs)}"
            for metric in ("ap50", "ap", "ap_small"):
                line += f"  {metric} {runs[metric].mean():6.2f} +- {spread(runs[metric]):4.2f}"
            paired = (runs.ap50 - plain.ap50).dropna() if len(plain) else []
            if arm != "plain" and len(paired):
                line += f"  ap50 - plain {paired.mean():+5.2f} ({', '.join(f'{d:+.2f}' for d in paired)})"
            print(line)


def spread(values: pd.Series) -> float:
    """Return the standard deviation over seeds; 0 for a single one."""
    return values.std(ddof=1) if len(values) > 1 else 0.0
