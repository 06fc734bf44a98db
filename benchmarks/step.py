r"""What a distilled training step costs: next to the plain student's, Ultralytics' distill_model, and the floor.

    python benchmarks/step.py --pairs yolo11n:yolo11s --imgsz 416 --batch 8 --out benchmarks/results/step.csv

A step is forward, losses, backward and SGD on one fixed batch. All sides take theirs in turns, in one process; ratios
of the medians count. On a CPU it is processor time that is taken, which other programs disturb less. The floor is what
no version of the method can avoid: the plain step, the teacher's forward pass, each amplifier's forward and backward
pass to the student's maps and the high-frequency one's forward pass on the teacher's. ``less`` columns leave out one
stream; ``in turns`` is the mean of two steps with ``implicit=turns``; ``measuring`` is the step, one in 50, that also
weighs the terms. All columns from ``plain`` to ``floor`` are multiples of the plain step.

``--memory`` measures instead how far a step raises the memory in use above the models, the images and the optimizer's
state: each side in a process of its own.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import platform
import statistics
import time
from copy import deepcopy
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import torch
from torch import nn
from ultralytics.cfg import get_cfg
from ultralytics.nn.distill_model import DistillationModel
from ultralytics.nn.tasks import DetectionModel

import ds2d2_yolo  # noqa: F401  sets Ultralytics' switches
from ds2d2_yolo.distill.levels import detect_head, tapped
from ds2d2_yolo.distill.model import DS2D2Model
from ds2d2_yolo.engine import settings

from rows import pairs  # beside this file

CLASSES = 20
STEPS = {"in turns": 2}  # where a side takes more than one
OURS = ("ds2d2", "in turns", "measuring")  # whose memory is measured
LESS = {"less explicit": ("ex_low", "ex_high"), "less im_full": ("im_full",), "less im_high": ("im_high",)}


def main() -> None:
    """Time every pair at every size and append a row each."""
    args = parse()
    for pair in args.pairs:
        for imgsz in args.imgsz:
            for batch in args.batch:
                for boxes in args.boxes:
                    row = (memory if args.memory else measure)(pair, imgsz, batch, boxes, args)
                    print(row, flush=True)
                    if args.out:
                        args.out.parent.mkdir(parents=True, exist_ok=True)
                        pd.DataFrame([row]).to_csv(args.out, mode="a", header=not args.out.exists(), index=False)


def parse() -> argparse.Namespace:
    """Read the command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--pairs", nargs="+", default=["yolo11n:yolo11s"], help="STUDENT:TEACHER, names of model YAMLs")
    p.add_argument("--imgsz", nargs="+", type=int, default=[416])
    p.add_argument("--batch", nargs="+", type=int, default=[8])
    p.add_argument("--boxes", nargs="+", type=int, default=[30], help="an image")
    p.add_argument("--rounds", type=int, default=8)
    p.add_argument("--ds2d2", default="", help="key=value,... other settings of DS2D2")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--amp", action="store_true", help="mixed precision (bfloat16 on a CPU)")
    p.add_argument("--memory", action="store_true", help="measure memory instead of time")
    p.add_argument("--out", type=Path)
    return p.parse_args()


def measure(pair: str, imgsz: int, batch: int, boxes: int, args: argparse.Namespace) -> dict:
    """Return one row: sizes, each side's cost, and the ratios that the targets are about."""
    torch.manual_seed(0)
    sides = build(pair, make_batch(imgsz, batch, boxes, args.device), args)
    seconds = {name: [] for name in sides}
    for turn in range(args.rounds + 1):
        for name, side in sides.items():
            begun = now(args.device)
            side()
            if turn:
                seconds[name].append(now(args.device) - begun)
    t = {name: statistics.median(values) / STEPS.get(name, 1) for name, values in seconds.items()}
    floor = t["plain"] + t["teacher"] + t["amplifiers"]
    row = {"pair": pair, "imgsz": imgsz, "batch": batch, "boxes": boxes, "rounds": args.rounds}
    row |= {"amp": args.amp, "settings": args.ds2d2}
    row |= {name: round(value / t["plain"], 3) for name, value in t.items()}
    row |= {"floor": round(floor / t["plain"], 3), "ds2d2_by_floor": round(t["ds2d2"] / floor, 3)}
    row |= {"ds2d2_by_teacher_and_plain": round(t["ds2d2"] / (t["plain"] + t["teacher"]), 3)}
    row |= {"in_turns_by_teacher_and_plain": round(t["in turns"] / (t["plain"] + t["teacher"]), 3)}
    row |= {"distill_model_by_teacher_and_plain": round(t["distill_model"] / (t["plain"] + t["teacher"]), 3)}
    return {**row, "device": name_of(args.device), "threads": torch.get_num_threads(), "torch": torch.__version__}


def memory(pair: str, imgsz: int, batch: int, boxes: int, args: argparse.Namespace) -> dict:
    """Return one row: how many MB a step of each side needs at its peak, and as multiples."""
    found = {}
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # every tensor goes back to the system when it dies
    for side in ("plain", "distill_model", *OURS):
        with get_context("spawn").Pool(1) as pool:
            found[side] = pool.apply(peak, (side, pair, imgsz, batch, boxes, args))
    row = {"pair": pair, "imgsz": imgsz, "batch": batch, "boxes": boxes, "amp": args.amp, "settings": args.ds2d2}
    row |= {f"{side} MB": round(value) for side, value in found.items()}
    row |= {f"{side} by distill_model": round(found[side] / found["distill_model"], 3) for side in OURS}
    return {**row, "device": name_of(args.device), "torch": torch.__version__}


def peak(side: str, pair: str, imgsz: int, batch: int, boxes: int, args: argparse.Namespace) -> float:
    """Return by how many MB a step raises the memory in use at its peak; alone in its process (a CPU's: Linux only)."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    step = build(pair, make_batch(imgsz, batch, boxes, args.device), args)[side]
    step()  # the optimizer's state, and what libraries set up once
    gc.collect()
    if args.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system, or the peak would begin above it
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
        before = resident("VmRSS")
    for _ in range(2):
        step()
    return ((torch.cuda.max_memory_allocated() if args.device != "cpu" else resident("VmHWM")) - before) / 2**20


def resident(field: str) -> int:
    """Return what Linux says of this process's memory in bytes: ``VmRSS`` now, ``VmHWM`` at its peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def name_of(device: str) -> str:
    """Return the device in words."""
    return torch.cuda.get_device_name() if device != "cpu" else f"{platform.machine()} CPU"


def now(device: str) -> float:
    """Return seconds; on a CPU those that this process has used."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def make_batch(imgsz: int, batch: int, boxes: int, device: str) -> dict:
    """Return a batch of noise with so many random boxes an image, most of them small."""
    count = batch * boxes
    sizes = 0.01 + 0.1 * torch.rand(count, 2) ** 2
    found = {"bboxes": torch.cat([0.1 + 0.8 * torch.rand(count, 2), sizes], 1)}
    found |= {"img": torch.rand(batch, 3, imgsz, imgsz), "cls": torch.randint(0, CLASSES, (count, 1)).float()}
    found["batch_idx"] = torch.arange(batch).repeat_interleave(boxes).float()
    return {key: value.to(device) for key, value in found.items()}


def build(pair: str, batch: dict, args: argparse.Namespace) -> dict:
    """Return every side as a function that does its work once."""
    student, teacher = (detector(name, batch, args.device) for name in pair.split(":"))
    own = settings.defaults() | settings.check(pairs(args.ds2d2))
    high = deepcopy(detect_head(teacher))
    ours = DS2D2Model(deepcopy(student), deepcopy(teacher), high, SimpleNamespace(**own)).train()
    ours.balance.set_progress(5, 10)
    theirs = DistillationModel(deepcopy(teacher), deepcopy(student))
    theirs.train()
    sides = {"plain": step_of(student, batch, args), "distill_model": step_of(theirs, batch, args)}
    sides |= {"ds2d2": step_of(ours, batch, args)}
    sides |= {"in turns": in_turns(ours, sides["ds2d2"]), "measuring": measuring(ours, sides["ds2d2"])}
    for name, terms in LESS.items():
        sides[name] = without(ours, terms, sides["ds2d2"])
    teacher = teacher.eval().fuse(verbose=False)  # whole: ours ends at the neck, and its head is an amplifier
    sides["teacher"] = under_autocast(args, lambda: torch.no_grad()(teacher)(batch["img"]))
    sides["amplifiers"] = amplifiers(ours, batch, args)
    return sides


def detector(name: str, batch: dict, device: str) -> DetectionModel:
    """Return a fresh detector in training mode, with Ultralytics' arguments."""
    model = DetectionModel(f"{name}.yaml", nc=CLASSES, verbose=False).to(device)
    model.args = get_cfg(overrides={"imgsz": batch["img"].shape[-1]})
    return model.train()


def under_autocast(args: argparse.Namespace, function):
    """Return the function in mixed precision where that is asked for."""
    kind = torch.bfloat16 if args.device == "cpu" else torch.float16

    def wrapped():
        with torch.autocast(args.device.partition(":")[0], kind, enabled=args.amp):
            return function()

    return wrapped


def step_of(model: nn.Module, batch: dict, args: argparse.Namespace):
    """Return a whole training step."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-5, momentum=0.9)
    loss = under_autocast(args, lambda: model.loss(batch)[0].sum())

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def without(model: DS2D2Model, terms: tuple[str, ...], step):
    """Return the step without some of the terms."""

    def lesser() -> None:
        weights = model.balance.weights
        model.balance.weights = {**weights, **dict.fromkeys(terms, 0.0)}
        try:
            step()
        finally:
            model.balance.weights = weights

    return lesser


def in_turns(model: DS2D2Model, step):
    """Return two steps, one with either implicit term."""

    def both() -> None:
        own, model.settings.implicit = model.settings.implicit, "turns"
        try:
            for model.turn in range(2):
                step()
        finally:
            model.settings.implicit = own

    return both


def measuring(model: DS2D2Model, step):
    """Return the step that also measures the terms' gradients."""

    def measured() -> None:
        model.measure_next = True
        step()

    return measured


def amplifiers(model: DS2D2Model, batch: dict, args: argparse.Namespace):
    """Return what both frozen heads cannot avoid, on maps of the real sizes."""
    frozen = model._frozen
    with torch.no_grad(), tapped(detect_head(model.student_model)) as neck:
        model.student_model(batch["img"])
        taught = frozen.teacher(batch["img"])
    taught = [taught[level.teacher] for level in model.levels]
    maps = [a(neck[level.student]) for a, level in zip(model.projector, model.levels, strict=True)]
    maps = [m.detach().requires_grad_() for m in maps]

    def once() -> None:
        for amplifier in (frozen.full, frozen.high):
            found = under_autocast(args, lambda head=amplifier: head(maps))()
            torch.autograd.grad([part.sum() for part in found], maps)
        with torch.no_grad():
            under_autocast(args, lambda: frozen.high(taught))()

    return once


if __name__ == "__main__":
    main()
