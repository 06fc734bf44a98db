r"""What the terms pull at a student's parameters, and what that leaves of the labels' step where gradients are clipped.

    python benchmarks/parameters.py --run runs/.../weights/last.pt --data airport/data.yaml --amplifier \
        teacher-amplifier-....pt --out benchmarks/results/parameters.csv

Of an unfinished distilled run, whose ``last.pt`` holds the adapters; the mean over some batches, each balanced by
itself, so that at the neck a term pulls by its weight.

``neck``, ``parameters``: the gradient's norm in the neck's maps, and in the parameters before the head, as a part of
the labels'. ``cosine``: of the two in the parameters. ``classes by boxes``: of both parts' norms in the neck's maps.
Rows ``clip=...``: how far the student's head moves in a step of SGD beside all terms, by how far without them, lowest
and highest in ``neck`` and ``parameters``.
"""

from __future__ import annotations

import argparse
import random
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from pulls import made_of
from torch import Tensor
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import load_checkpoint

from ds2d2_yolo.distill.amplifiers import Step
from ds2d2_yolo.distill.balance import TERMS
from ds2d2_yolo.distill.levels import detect_head, tapped
from ds2d2_yolo.distill.model import DS2D2Model
from ds2d2_yolo.distill.teacher import load_teacher
from ds2d2_yolo.engine import settings
from ds2d2_yolo.engine.amplifier_file import amplifier_head
from ds2d2_yolo.engine.clipping import clipped_apart


def main() -> None:
    """Measure, print and keep a table."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--run", required=True, help="last.pt of an unfinished distilled run")
    p.add_argument("--data", type=Path, required=True, help="the data set's YAML, beside its folders images and labels")
    p.add_argument("--teacher", help="the run's own unless given")
    p.add_argument("--amplifier", required=True, help="the high-frequency amplifier's file")
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--batches", type=int, default=6)
    p.add_argument("--imgsz", type=int, default=320)
    p.add_argument("--out", type=Path)
    args = p.parse_args()
    random.seed(0)
    torch.manual_seed(0)
    model = loaded(args)
    files = sorted((args.data.parent / "images" / "train").iterdir())
    found = [measured(model, made_of(files, args, 0.0)) for _ in range(args.batches)]
    rows = []
    for what in found[0][0]:
        every = pd.DataFrame([one[what] for one, _ in found])
        rows.append({"what": what, **every.mean().round(3).to_dict()})
    for clip in ("all", "labels"):
        kept = [steps[clip] for _, steps in found]
        rows.append({"what": f"clip={clip}", "neck": round(min(kept), 2), "parameters": round(max(kept), 2)})
    table = pd.DataFrame(rows).assign(batches=args.batches, torch=torch.__version__)
    print(table.to_string(index=False))
    if args.out:
        table.to_csv(args.out, index=False)


def loaded(args: argparse.Namespace) -> DS2D2Model:
    """The run's student, adapters and teacher, with all terms at their default weights."""
    run, checkpoint = load_checkpoint(args.run)
    teacher = load_teacher(args.teacher or checkpoint["train_args"]["teacher"])
    own = settings.of(get_cfg())
    head = amplifier_head(args.amplifier, teacher, *settings.high_pass(own))
    student = run.student_model.float().requires_grad_(True)
    student.args = get_cfg()
    model = DS2D2Model(student, teacher, head, own)
    model.projector.load_state_dict(run.projector.float().state_dict())
    return model.train()


def measured(model: DS2D2Model, batch: dict) -> tuple[dict[str, dict], dict[str, float]]:
    """What labels and terms pull, and the head's step under both ways to clip, as parts of plain training's."""
    student, head = model.student_model, detect_head(model.student_model)
    of_head = {id(p) for p in head.parameters()}
    body = [p for p in student.parameters() if id(p) not in of_head]
    with torch.no_grad():
        taught = model._frozen.teacher(batch["img"])
    with tapped(head) as neck:
        preds = student(batch["img"])
    labels, _ = student.loss(batch, preds)
    ours, theirs = (
        [maps[getattr(one, side)] for one in model.levels] for maps, side in ((neck, "student"), (taught, "teacher"))
    )
    step, images = Step(batch, preds), len(batch["img"])
    model.balance.scales, model.balance._first = {}, {}
    terms = model.terms(ours, theirs, step)
    model.balance.measure(labels.sum() / images, terms, neck)
    losses = {"labels": labels.sum(), **{k: model.balance.multiplier(k) * v * images for k, v in terms.items()}}
    maps, pulls = {k: gradient(v, neck) for k, v in losses.items()}, {k: gradient(v, body) for k, v in losses.items()}
    own = pulls["labels"]
    rows = {
        k: {
            "neck": (maps[k].norm() / maps["labels"].norm()).item(),
            "parameters": (pulls[k].norm() / own.norm()).item(),
            "cosine": torch.cosine_similarity(pulls[k], own, dim=0).item(),
        }
        for k in ("labels", *TERMS)
    }
    rows["labels"]["classes by boxes"] = (gradient(labels[1], neck).norm() / gradient(labels[0], neck).norm()).item()
    for name, amplifier in (("im_full", model._frozen.full), ("im_high", model._frozen.high)):
        amplifier.box_gain = 0.0
        classes = gradient(model.balance.multiplier(name) * model.terms(ours, theirs, step)[name] * images, neck)
        amplifier.box_gain = 1.0
        rows[name]["classes by boxes"] = (classes.norm() / (maps[name] - classes).norm()).item()
    return rows, head_steps(model, losses, list(head.parameters()))


def head_steps(model: DS2D2Model, losses: dict[str, Tensor], head: list) -> dict[str, float]:
    """How far the head moves, by how far it does in plain training, where both are clipped at 10."""

    def moved(loss: Tensor, clip) -> float:
        model.zero_grad()
        loss.backward(retain_graph=True)
        clip()
        return torch.cat([p.grad.flatten() for p in head if p.grad is not None]).norm().item()

    def apart(labels_alone: bool) -> None:
        with clipped_apart(model, labels_alone):
            torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)

    plain = moved(losses["labels"], lambda: torch.nn.utils.clip_grad_norm_(model.student_model.parameters(), 10.0))
    every, clips = sum(losses.values()), {"all": partial(apart, False), "labels": partial(apart, True)}
    return {name: moved(every, clip) / plain for name, clip in clips.items()}


def gradient(loss: Tensor, at: list[Tensor]) -> Tensor:
    """The gradient of a loss at several tensors, as one vector."""
    grads = torch.autograd.grad(loss, at, retain_graph=True, allow_unused=True)
    return torch.cat([torch.zeros(p.numel()) if g is None else g.flatten() for g, p in zip(grads, at, strict=True)])


if __name__ == "__main__":
    main()
