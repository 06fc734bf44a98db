"""One step of each kind of pair, alone with all images and then as one of two processes with half of them each.

    torchrun --nproc_per_node=2 tests/helpers/sharing.py FOLDER

Each process writes what it found to FOLDER/RANK.pt; the first one has done it alone before.
"""

import gc
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    gc.disable()  # it takes a fifth of the time to import PyTorch

import torch
import torch.distributed as dist
from torch import nn

from ds2d2_yolo.engine.processes import join, leave, together
from ds2d2_yolo.method.shared import processes
from tests.helpers.distilling import distilled, make_batch, tiny, tiny_faster_rcnn, tiny_retinanet

# All that is sampled is taken, so that nothing is drawn
EVERYTHING = {"rpn_samples": 10**6, "roi_samples": 10**6}
CASES = {
    "yolo": (lambda: (tiny(seed=0), tiny(width=16, seed=1)), {}),
    "end to end": (lambda: (tiny(end2end=True, reg_max=1), tiny(end2end=True, reg_max=1, width=16, seed=1)), {}),
    "as in the paper": (
        lambda: (tiny(seed=0), tiny(seed=1)),
        {"normalize": "none", "align": False, "balance": "fixed"},
    ),
    "teacher's scale": (lambda: (tiny(seed=0), tiny(width=16, seed=1)), {"normalize": "teacher"}),
    "retinanet": (lambda: (tiny_retinanet(16), tiny_retinanet(24, seed=1)), {}),
    "retinanet as published": (lambda: (tiny_retinanet(16), tiny_retinanet(16, seed=1)), {"published": True}),
    "faster-rcnn": (lambda: (tiny_faster_rcnn(16, **EVERYTHING), tiny_faster_rcnn(24, seed=1)), {}),
    "faster-rcnn as published": (
        lambda: (tiny_faster_rcnn(16, **EVERYTHING), tiny_faster_rcnn(16, seed=1)),
        {"published": True},
    ),
}
COUNTS = (3, 0, 7, 1)  # boxes an image: the halves differ in all that is counted
SIZE = 96
HEADS = ("yolo", "end to end", "retinanet", "faster-rcnn")


def share(batch, rank, size):
    """The images of one process, and their boxes."""
    images = len(batch["img"]) // size
    mine = (batch["batch_idx"] // images).long() == rank
    part = {key: batch[key][mine] for key in ("bboxes", "cls", "batch_idx")}
    part["batch_idx"] = part["batch_idx"] - rank * images
    return {**part, "img": batch["img"][rank * images : (rank + 1) * images]}


def steps(name):
    """Two steps: the first measures the terms, the second uses what was measured. Losses, gradients and scales."""
    build, changes = CASES[name]
    torch.manual_seed(0)
    model = distilled(*build(), **changes)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # its statistics are each process's own, as in all of Ultralytics' training
    model.balance.set_progress(5, 10)
    size, rank = processes(), dist.get_rank() if processes() > 1 else 0
    wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True) if size > 1 else model
    found = {}
    for step in range(2):
        batch = make_batch(COUNTS, size=SIZE, seed=step)
        model.zero_grad()
        loss, items = wrapped(share(batch, rank, size))
        total = loss.sum() * size  # as Ultralytics' trainer does
        total.backward()
        found |= {f"{step} loss": total.detach(), f"{step} items": torch.stack([*items.values()]).detach()}
        found |= {f"{step} {key}": p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    return found | {f"scale {key}": torch.tensor(value) for key, value in model.balance.scales.items()}


def validate(batches):
    """The losses of some validation batches, which no other process has to wait for."""
    batch = make_batch(COUNTS, size=SIZE)
    for name in HEADS:
        student = CASES[name][0]()[0].eval()
        with torch.no_grad():
            for _ in range(batches):
                student.loss(batch, student(batch["img"]))


def main(folder):
    torch.set_num_threads(1)
    alone = {name: steps(name) for name in CASES} if os.environ["RANK"] == "0" else {}
    join("cpu")
    with together(str):
        shared = {name: steps(name) for name in CASES}
        validate(2 - dist.get_rank())  # as Ultralytics shares out images that do not divide evenly
        dist.barrier()
    torch.save({"alone": alone, "shared": shared}, Path(folder) / f"{dist.get_rank()}.pt")
    leave()


if __name__ == "__main__":
    main(sys.argv[1])
