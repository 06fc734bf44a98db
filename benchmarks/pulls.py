r"""How hard a term pulls at the student where some images hold no object, and how hard its weight says.

    python benchmarks/pulls.py --data airport/data.yaml --teacher teacher/best.pt --student student/best.pt \
        --empty 0 0.7 --batches 40 --out benchmarks/results/pulls.csv

A term's weight is measured on some batches and holds for those that follow, whose labels may pull otherwise: a
detection loss is divided by the objects of its batch. Here every batch gets the weight of the batches before it, and
its pull, the term's gradient by the detection loss's, is divided by the one that is meant; 1 is as it should be. Empty
images are crops without objects of the same images. ``arithmetic``: the rule until November 2026, a mean of the ratios
of all batches.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from torch import Tensor
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import load_checkpoint

from ds2d2_yolo.distill import model as distilled
from ds2d2_yolo.distill.balance import LIMIT, Balance
from ds2d2_yolo.distill.model import DS2D2Model
from ds2d2_yolo.distill.teacher import load_teacher
from ds2d2_yolo.engine import settings

TERM = "im_full"


class Arithmetic(Balance):
    """The rule of before."""

    def _update_scale(self, name: str, ratio: float) -> None:
        first = self._first.setdefault(name, ratio)
        ratio = min(ratio, LIMIT * first)
        self.scales[name] = 0.5 * (self.scales.get(name, ratio) + ratio)


RULES = {"geometric, objects": (Balance, distilled.has_objects), "arithmetic": (Arithmetic, lambda _: True)}


def main() -> None:
    """Measure both rules on the same batches."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, required=True, help="the data set's YAML, beside its folders images and labels")
    p.add_argument("--teacher", required=True)
    p.add_argument("--student", required=True, help="a trained student")
    p.add_argument("--empty", type=float, nargs="+", default=[0.0, 0.7], help="shares of images without objects")
    p.add_argument("--batch", type=int, default=4)
    p.add_argument("--batches", type=int, default=60)
    p.add_argument("--imgsz", type=int, default=320)
    p.add_argument("--out", type=Path)
    args = p.parse_args()
    rows = [measured(args, rule, share) for share in args.empty for rule in RULES]
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    if args.out:
        table.to_csv(args.out, index=False)


def measured(args: argparse.Namespace, rule: str, share: float) -> dict:
    """A row: what the pull was of what was meant, over the batches that hold objects."""
    random.seed(0)
    torch.manual_seed(0)
    kind, distilled.has_objects = RULES[rule]
    student, _ = load_checkpoint(args.student)
    student.args = get_cfg()
    own = settings.of(get_cfg())
    own.im_high = 0.0
    model = DS2D2Model(student.requires_grad_(True), load_teacher(args.teacher), None, own).train()
    model.balance = kind({name: getattr(own, name) for name in ("ex_low", "ex_high", TERM)})
    pulls, files = [], sorted((args.data.parent / "images" / "train").iterdir())
    for _ in range(args.batches):
        batch, before = made_of(files, args, share), model.balance.scales.get(TERM)
        norms = gradients(model, batch)
        if before and len(batch["bboxes"]):
            pulls.append(before * norms[TERM] / norms["detection"])
        model.measure_next = True
        model(batch)
    quantiles = {f"p{q}": round(float(np.percentile(pulls, q)), 2) for q in (10, 50, 90)}
    named = {"rule": rule, "empty images": share, "batch": args.batch, "batches": len(pulls)}
    return {**named, **quantiles, "max": round(max(pulls), 2), "torch": torch.__version__}


def gradients(model: DS2D2Model, batch: dict) -> dict[str, float]:
    """The norms at the student's neck, whatever the rule makes of them."""
    kept, rule = model.balance, distilled.has_objects
    model.balance, distilled.has_objects = Balance(kept.weights), lambda _: True
    model.measure_next = True
    try:
        model(batch)
        return model.balance.state()["norms"]
    finally:
        model.balance, distilled.has_objects = kept, rule


def made_of(files: list[Path], args: argparse.Namespace, share: float) -> dict:
    """A batch of random images, some of them crops without an object."""
    images, boxes, index = [], [], []
    for i in range(args.batch):
        if random.random() < share:
            images.append(empty_crop(files, args.imgsz))
            continue
        file = random.choice(files)
        images.append(cv2.resize(cv2.imread(str(file)), (args.imgsz, args.imgsz)))
        found = labels(file)
        boxes.append(found)
        index += [i] * len(found)
    x = torch.from_numpy(np.stack(images)[..., ::-1].copy()).permute(0, 3, 1, 2).float() / 255
    every = torch.cat([torch.zeros(0, 4), *boxes])
    return {"img": x, "bboxes": every, "cls": torch.zeros(len(every), 1), "batch_idx": torch.tensor(index).float()}


def empty_crop(files: list[Path], size: int) -> np.ndarray:
    """A quarter of a random image in which no box lies."""
    while True:
        file = random.choice(files)
        left, top = random.random() / 2, random.random() / 2
        x, y, w, h = labels(file).unbind(1)
        if not ((x + w / 2 > left) & (x - w / 2 < left + 0.5) & (y + h / 2 > top) & (y - h / 2 < top + 0.5)).any():
            image = cv2.imread(str(file))
            rows, columns = (
                slice(int(a * n), int((a + 0.5) * n)) for a, n in zip((top, left), image.shape, strict=False)
            )
            return cv2.resize(image[rows, columns], (size, size))


def labels(image: Path) -> Tensor:
    """Boxes ``(N, 4)``, xywh of the image; all of one class here."""
    lines = (image.parents[2] / "labels" / image.parent.name / f"{image.stem}.txt").read_text().splitlines()
    return torch.tensor([[float(v) for v in line.split()[1:5]] for line in lines]).reshape(-1, 4)


if __name__ == "__main__":
    main()
