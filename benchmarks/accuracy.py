r"""What distillation gains: one student, recipe and seeds, trained plain, with Ultralytics' distill_model, with DS2D2.

    python benchmarks/accuracy.py --data airport/data.yaml --out benchmarks/results/airport.csv \
        --student yolov5n.yaml:0.125 --teacher-model yolov5n.yaml --teacher-weights yolov5n-coco.pt \
        --imgsz 416 --epochs 100

One row a run is appended to the CSV as the run ends, and one for the teacher; the same command continues where the last
one stopped, also in the middle of a run. ``--minutes`` ends the command in time. Arms: ``plain``, ``distill_model``,
``ds2d2``, ``ds2d2-TERM`` (less one term), and any other as ``NAME:key=value,key=value``, e.g.
``no-disw:teacher=T,disw=False`` (T: the teacher).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
import ultralytics
from ultralytics.engine import trainer
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils.callbacks import default_callbacks

import ds2d2_yolo  # sets Ultralytics' switches
from ds2d2_yolo.demo import narrower
from ds2d2_yolo.engine.base import SettingsTrainer
from ds2d2_yolo.engine.settings import TERMS, defaults
from ds2d2_yolo.engine.train import finished, train
from ds2d2_yolo.engine.trainer import DS2D2Trainer
from ds2d2_yolo.report.coco import evaluate

from rows import append, commit, device_name, done, pairs, print_summary  # beside this file
from starts import start_from

ARMS = ["plain", "distill_model", "ds2d2", *(f"ds2d2-{term}" for term in TERMS)]
RECIPE = "batch=8,nbs=8,optimizer=AdamW,lr0=0.002,cos_lr=True,warmup_epochs=2,cache=ram,val=False,plots=False"
METRICS = ("ap50", "ap", "ap75", "ap_small", "ap_medium", "ap_large")


def main() -> None:
    """Run what is missing and print the summary."""
    args = parse()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.bf16:  # losses stay in float32, as on a GPU
        trainer.autocast = lambda *_, **__: torch.autocast("cpu", torch.bfloat16)
    args.deadline = time.time() + 60 * args.minutes
    if not args.summary:
        # A misspelt arm ends the command before hours are spent, and plain arms alone need no teacher
        taught = any("T" in settings_of(args, arm, "T").values() for arm in args.arms)
        teacher = prepare_teacher(args) if taught else ""
        if taught:
            rate_teacher(args, teacher)
        for seed in args.seeds:
            for arm in args.arms:
                run = identity(args, arm, seed, teacher)
                if not done(args.out, run):
                    execute(args, run, settings_of(args, arm, teacher))
    print_summary(args.out)


def parse() -> argparse.Namespace:
    """Read the command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", required=True)
    p.add_argument("--out", type=Path, required=True, help="CSV to append to")
    p.add_argument("--work", type=Path, default=Path("runs/accuracy"), help="where runs and teachers are kept")
    p.add_argument("--student", default="yolo26n.yaml", help="model YAML, or YAML:WIDTH for another width")
    p.add_argument(
        "--student-weights", help="state dict or checkpoint of the same model, any width, that the student starts from"
    )
    p.add_argument("--teacher", help="trained teacher; default: train one")
    p.add_argument("--teacher-model", default="yolo26s.yaml")
    p.add_argument("--teacher-weights", help="state dict or checkpoint the teacher starts from")
    p.add_argument("--teacher-epochs", type=int, default=60)
    p.add_argument("--arms", nargs="+", default=["plain", "distill_model", "ds2d2"], metavar="ARM")
    p.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    p.add_argument("--imgsz", type=int, default=640)
    p.add_argument("--epochs", type=int, default=100)
    p.add_argument("--recipe", default=RECIPE, help="key=value,... for every run, the teacher's included")
    p.add_argument("--ds2d2", default="", help="key=value,... for every ds2d2 arm")
    p.add_argument("--device", default="")
    p.add_argument("--workers", type=int, help="processes that load images for a run on a GPU; default: Ultralytics'")
    p.add_argument("--bf16", action="store_true", help="train in bfloat16 also on a CPU (Ultralytics: on GPUs)")
    p.add_argument("--minutes", type=float, default=1e6, help="stop (resumably) after so many minutes")
    p.add_argument("--save-every", type=int, default=1, help="epochs between checkpoints, with val=False: saves time")
    p.add_argument("--summary", action="store_true", help="only print the summary")
    args = p.parse_args()
    if args.save_every > 1 and pairs(args.recipe).get("val", True):
        p.error("--save-every needs val=False in --recipe: the best epoch may lie between")
    return args


def common(args: argparse.Namespace) -> dict:
    """Return what every run shares."""
    shared = {"data": args.data, "imgsz": args.imgsz, "project": str(args.work.resolve()), "exist_ok": True}
    given = {"device": args.device, "workers": args.workers}
    return {**shared, **pairs(args.recipe), **{key: value for key, value in given.items() if value not in ("", None)}}


def model_yaml(name: str, work: Path) -> str:
    """Return a model YAML; ``yolov5n:0.125`` is YOLOv5n's depth at an eighth of full width, half of its own."""
    base, _, width = name.partition(":")
    return narrower(base, float(width), work / f"{Path(base).stem}-w{width}.yaml") if width else base


def prepare_teacher(args: argparse.Namespace) -> str:
    """Return the trained teacher, training it first where none is given."""
    if args.teacher:
        return args.teacher
    what = [args.data, args.imgsz, args.recipe, args.teacher_model, args.teacher_weights, args.teacher_epochs]
    what += ["bf16"] * args.bf16
    name = f"teacher-{short_hash(what)}"
    overrides = {**common(args), "model": args.teacher_model, "name": name, "epochs": args.teacher_epochs}
    if args.teacher_weights:
        overrides["model"] = start_from(args.teacher_weights, args.teacher_model, args.work / f"{name}-start.pt")
    return str(bounded(args, overrides, args.work / name))


def settings_of(args: argparse.Namespace, arm: str, teacher: str) -> dict:
    """Return an arm's own settings."""
    name, custom, text = arm.partition(":")
    if custom:
        return {k: teacher if v == "T" else v for k, v in pairs(text).items()}
    if name not in ARMS:
        sys.exit(f"unknown arm '{arm}'; known: {', '.join(ARMS)}, or NAME:key=value,...")
    if name == "plain":
        return {}
    if name == "distill_model":
        return {"distill_model": teacher}
    less = name.partition("-")[2]
    fading = {"distill_final": defaults()["distill_final"]}  # named: it has been another default
    return {"teacher": teacher, **fading, **pairs(args.ds2d2), **({less: 0} if less else {})}


def identity(args: argparse.Namespace, arm: str, seed: int, teacher: str) -> dict:
    """Return the columns that make a run what it is; ``run`` stands for all of them."""
    own = {k: "T" if v == teacher else v for k, v in settings_of(args, arm, teacher).items()}
    own = {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in sorted(own.items())}
    what = {"arm": arm.partition(":")[0], "seed": seed, "data": Path(args.data).resolve().parent.name}
    student = args.student + (f" from {Path(args.student_weights).stem}" if args.student_weights else "")
    what |= {"student": student, "epochs": args.epochs, "imgsz": args.imgsz, "settings": json.dumps(own)}
    recipe = args.recipe + (" in bfloat16" if args.bf16 else "")
    what |= {"recipe": recipe, "teacher": short_hash(Path(teacher).read_bytes()) if "T" in own.values() else ""}
    return {"run": short_hash(what), **what}


def short_hash(what) -> str:
    """Return eight hexadecimal digits that stand for bytes or plain values."""
    data = what if isinstance(what, bytes) else json.dumps(what, default=str).encode()
    return hashlib.sha256(data).hexdigest()[:8]


def unfinished(folder: Path) -> Path | None:
    """Return the checkpoint to resume in a run's folder or in that of its amplifier stage."""
    for last in (folder / "weights/last.pt", folder.with_name(f"{folder.name}-amplifier") / "weights/last.pt"):
        if last.exists() and not finished(load_checkpoint(last)[1]):
            return last
    return None


def bounded(args: argparse.Namespace, overrides: dict, folder: Path) -> Path:
    """Train, or go on training, until the end or the deadline; exit with a line at the deadline."""
    best, last = folder / "weights/best.pt", unfinished(folder)
    if best.exists() and last is None:
        return best
    if time.time() > args.deadline:
        sys.exit("out of time; the same command goes on from here")

    def stop_in_time(trainer):
        if time.time() > args.deadline and trainer.epoch + 1 < trainer.epochs:
            raise KeyboardInterrupt

    saved = default_callbacks["on_model_save"]
    default_callbacks["on_model_save"] = [*saved, stop_in_time]
    try:
        with ExitStack() as stack:
            for kind in (SettingsTrainer, DS2D2Trainer):
                stack.enter_context(patch.object(kind, "save_model", now_and_then(kind.save_model, args)))
            return train({"resume": str(last)} if last else overrides)
    except KeyboardInterrupt:
        sys.exit("out of time; the same command goes on from here")
    finally:
        default_callbacks["on_model_save"] = saved


def now_and_then(save: Callable, args: argparse.Namespace) -> Callable:
    """Save every so many epochs, after the last one, and past the deadline: what a run comes to is the same."""

    def save_model(trainer) -> bool:
        done = trainer.epoch + 1
        return (done % args.save_every == 0 or done == trainer.epochs or time.time() > args.deadline) and save(trainer)

    return save_model


def execute(args: argparse.Namespace, run: dict, own: dict) -> None:
    """Train and evaluate one run and append its row."""
    name = f"{run['arm']}-s{run['seed']}-{run['run']}"
    model = model_yaml(args.student, args.work)
    if args.student_weights:
        model = start_from(args.student_weights, model, args.work / f"{name}-start.pt")
    overrides = {**common(args), "model": model, "name": name, "seed": run["seed"]}
    begun = args.work / f"{name}.commit"
    if not begun.exists():
        begun.write_text(commit())
    with counting(args.work / f"{name}.minutes") as minutes:
        best = bounded(args, {**overrides, "epochs": args.epochs, **own}, args.work / name)
    add_row(args, run, best, minutes(), "..".join(dict.fromkeys([begun.read_text(), commit()])))


@contextmanager
def counting(file: Path) -> Iterator[Callable[[], float]]:
    """Count the minutes of the block, and of those before it that ended early, in a file."""
    began, before = time.time(), float(file.read_text()) if file.exists() else 0.0
    try:
        yield lambda: float(file.read_text())
    finally:
        file.write_text(str(before + (time.time() - began) / 60))


def rate_teacher(args: argparse.Namespace, teacher: str) -> None:
    """Evaluate the teacher and append its row: the students' are read against it."""
    what = {"arm": "teacher", "seed": 0, "data": Path(args.data).resolve().parent.name, "student": ""}
    what |= {"epochs": "", "imgsz": args.imgsz, "settings": "{}", "recipe": ""}
    run = {"run": short_hash({**what, "teacher": (digest := short_hash(Path(teacher).read_bytes()))}), **what}
    if not done(args.out, run):
        add_row(args, {**run, "teacher": digest}, Path(teacher), 0.0, commit())


def add_row(args: argparse.Namespace, run: dict, best: Path, minutes: float, code: str) -> None:
    """Evaluate a checkpoint and append the row of its run, trained by that code."""
    result = evaluate(best, args.data, imgsz=args.imgsz, batch=16, device=args.device)
    row = {**run, **{m: round(getattr(result, m), 3) for m in METRICS}}
    row |= {"minutes": round(minutes, 1), "device": device_name(args.device)}
    row |= {"ultralytics": ultralytics.__version__, "torch": torch.__version__, "ds2d2_yolo": ds2d2_yolo.__version__}
    append(args.out, {**row, "commit": code})


if __name__ == "__main__":
    main()
