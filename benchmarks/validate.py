r"""Rating detections: how long it takes next to pycocotools, faster-coco-eval and Ultralytics' validator.

    python benchmarks/validate.py --out benchmarks/results/validate.csv

All are handed the same made-up objects and noisy detections of them, in memory as a model leaves them, and run in
turns, ``--rounds`` times; the seconds are the median of processor time. Of Ultralytics' validator it is the matching of
each image and the metrics at the end, not the model. Ours gives the most figures: COCO's in all, by size and by class,
VOC's, and precision, recall and F1.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import platform
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from faster_coco_eval import COCO as FasterCOCO
from faster_coco_eval import COCOeval_faster
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from ultralytics.models.yolo.detect import DetectionValidator

from ds2d2_yolo.report.detections import Detections, Truth
from ds2d2_yolo.report.rating import rate


def main() -> None:
    """Time all and append a row each."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True, help="CSV to append to")
    p.add_argument("--images", type=int, default=5000)
    p.add_argument("--detections", type=int, default=100, help="an image")
    p.add_argument("--objects", type=int, default=30, help="an image")
    p.add_argument("--classes", type=int, default=20)
    p.add_argument("--rounds", type=int, default=3)
    args = p.parse_args()
    torch.set_num_threads(1)
    truth, found = make(args.images, args.detections, args.objects, args.classes)
    sides = {"ours": ours(truth, found), "Ultralytics' validator": ultralytics(truth, found)}
    sides |= {"faster-coco-eval": coco(truth, found, FasterCOCO, COCOeval_faster)}
    sides |= {"pycocotools": coco(truth, found, COCO, COCOeval)}
    seconds, scores = {name: [] for name in sides}, {}
    for i in range(args.rounds):
        for name, side in sides.items():
            began = time.process_time()
            scores[name] = side()
            seconds[name].append(time.process_time() - began)
            print(f"round {i + 1}, {name}: {seconds[name][-1]:.2f} s, AP {scores[name]:.4f}", flush=True)
    base = statistics.median(seconds["ours"])
    for name, times in seconds.items():
        row = {"side": name, **{k: v for k, v in vars(args).items() if k != "out"}, "ap": round(scores[name], 6)}
        row |= {"seconds": round(statistics.median(times), 3), "times_ours": round(statistics.median(times) / base, 2)}
        row["device"] = f"{platform.machine()} CPU, {os.cpu_count()} processors, 1 thread"
        row["versions"] = " ".join(f"{n} {version(n)}" for n in ("ultralytics", "faster-coco-eval", "pycocotools"))
        print(row)
        pd.DataFrame([row]).to_csv(args.out, mode="a", header=not args.out.exists(), index=False)


def make(images: int, detections: int, objects: int, classes: int) -> tuple[Truth, Detections]:
    """Objects of 8 to 150 px, and detections that miss by some 15 % of a side, a fifth of them of another class."""
    rng = np.random.default_rng(0)
    count = images * objects
    image, cls = np.repeat(np.arange(images), objects), rng.integers(0, classes, count)
    corner, side = rng.uniform(0, 700, (count, 2)), np.exp(rng.uniform(np.log(8), np.log(150), (count, 2)))
    of = np.repeat(np.arange(images), detections)
    source = of * objects + rng.integers(0, objects, len(of))
    shift, growth = rng.normal(0, 0.15, (2, len(of), 2))
    at, size = corner[source] + shift * side[source], side[source] * np.exp(growth)
    kind = np.where(rng.random(len(of)) < 0.2, rng.integers(0, classes, len(of)), cls[source])
    names = {i: f"class {i}" for i in range(classes)}
    shapes, box = np.full((images, 2), 800), np.concatenate([corner, corner + side], 1)
    truth = Truth(tuple(f"{i}.jpg" for i in range(images)), shapes, image, cls, box, names)
    return truth, Detections(of, kind, rng.random(len(of)), np.concatenate([at, at + size], 1))


def ours(truth: Truth, found: Detections):
    """Arrays in, AP out."""
    return lambda: rate(truth, found).ap


def ultralytics(truth: Truth, found: Detections):
    """Tensors of each image in, in the order of their scores, as they come from NMS; mAP50-95 out."""
    with tempfile.TemporaryDirectory() as folder:
        validator = DetectionValidator(save_dir=Path(folder), args={"plots": False})
    order = np.lexsort((-found.score, found.image))
    preds, batches = [], []
    for i in range(len(truth.images)):
        rows = order[slice(*np.searchsorted(found.image, (i, i + 1)))]
        columns = {"bboxes": found.box, "conf": found.score, "cls": found.cls.astype(np.float32)}
        preds.append({name: torch.from_numpy(values[rows]) for name, values in columns.items()})
        mine = truth.image == i
        columns = {"bboxes": truth.box[mine], "cls": truth.cls[mine]}
        batches.append({name: torch.from_numpy(values.astype(np.float32)) for name, values in columns.items()})

    def side() -> float:
        metrics = validator.metrics
        metrics.names = truth.names
        metrics.clear_stats()
        metrics.clear_image_metrics()
        for pred, batch, file in zip(preds, batches, truth.images, strict=True):
            cls = batch["cls"].numpy()
            counted = {"target_cls": cls, "target_img": np.unique(cls), "im_name": file}
            scored = {"conf": pred["conf"].numpy(), "pred_cls": pred["cls"].numpy()}
            metrics.update_stats({**validator._process_batch(pred, batch), **counted, **scored})
        metrics.process(save_dir=validator.save_dir, plot=False)
        return 100 * float(metrics.box.map)

    return side


def coco(truth: Truth, found: Detections, dataset, judge):
    """Rows in, made into the dictionaries that the package goes by; AP out."""

    def rows(image, cls, box, **more):
        sides = np.concatenate([box[:, :2], box[:, 2:] - box[:, :2]], 1, dtype=np.float64)
        columns = (image + 1, cls, sides, sides[:, 2] * sides[:, 3], *more.values())
        keys = ("id", "image_id", "category_id", "bbox", "area", *more)
        made = zip(range(1, len(image) + 1), *(column.tolist() for column in columns), strict=True)
        return [dict(zip(keys, row, strict=True), iscrowd=0) for row in made]

    def side() -> float:
        shared = {"images": [{"id": i, "width": 800, "height": 800} for i in range(1, len(truth.images) + 1)]}
        shared["categories"] = [{"id": i, "name": name} for i, name in truth.names.items()]
        sets = []
        with contextlib.redirect_stdout(io.StringIO()):
            for annotations in (
                rows(truth.image, truth.cls, truth.box),
                rows(found.image, found.cls, found.box, score=found.score),
            ):
                sets.append(dataset())
                sets[-1].dataset = {**shared, "annotations": annotations}
                sets[-1].createIndex()
            run = judge(*sets, "bbox")
            run.params.maxDets = [1, 100, 300]
            run.evaluate()
            run.accumulate()
        precision = run.eval["precision"][..., 0, -1]
        return 100 * float(precision[precision > -1].mean())

    return side


if __name__ == "__main__":
    main()
