"""From a plan to a data set that Ultralytics trains on: spread over threads, resumable, accounted for."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
from ultralytics.utils import TQDM, YAML

from ds2d2_yolo.datasets.census import Census
from ds2d2_yolo.datasets.journal import Journal
from ds2d2_yolo.datasets.objects import Job, Plan
from ds2d2_yolo.datasets.one_image import Options, convert_one
from ds2d2_yolo.datasets.pictures import Budget, inspect
from ds2d2_yolo.errors import UserError

TILES = ("tile", "x", "y", "width", "height", "tile_width", "tile_height", "image_width", "image_height")
CORNERS = ("x1", "y1", "x2", "y2", "x3", "y3", "x4", "y4")
_BYTES = 3.6e9  # that decoding takes at a time: 1.2 billion pixels of 8 bits
# Bytes of a tile for each byte of its part of the image: packed losslessly, and as JPEG
_GROWTH = {"png": (1.2, 7.0), "jpg": (0.35, 1.2)}
_SPARE = 256 * 2**20  # bytes left free on the disk


def convert(plan: Plan, dest: str | Path, options: Options, source: Path, workers: int = 0) -> Census:
    """Write a data set in YOLO's layout to ``dest``, with ``data.yaml``, tables of what went in and what was dropped.

    The same call goes on where an interrupted one stopped. The source is only read.

    Args:
        plan: What to convert.
        dest: The folder to write; new, empty, or begun by the same call.
        options: What is made of an image.
        source: Where the plan's files lie.
        workers: Threads; 0: as many as there are processors.

    Raises:
        UserError: ``dest`` holds something else or lies in the source, nothing can be converted, the disk is full, the
            source cannot be read any more, or says something else of images that are done.
        KeyboardInterrupt: Interrupted; the message says how to go on.
    """
    dest, source = Path(dest).expanduser().absolute(), source.absolute()
    if dest.resolve() == source.resolve() or source.resolve() in dest.resolve().parents:
        raise UserError(f"'{dest}' lies in the source, which is never written to; give another folder as DEST")
    if not plan.jobs:
        said = "; ".join(f"{reason}: {len(names)}" for reason, names in plan.problems.items() if names)
        raise UserError(f"no image of '{source}' can be converted ({said or 'there are none with annotations'})")
    header = {"kind": plan.kind, "source": str(source), "names": plan.names, "options": asdict(options)}
    header |= plan.settings
    journal, workers = Journal(dest, json.loads(json.dumps(header))), workers or os.cpu_count() or 1
    journal.check(plan, workers)
    if again := journal.forget_replaced(plan):
        print(f"{again} x image that is another in the source now (made again)", flush=True)
    journal.forget_lost()
    done = journal.done
    todo = [job for job in plan.jobs if (job.split, job.stem) not in done]
    _check_disk(todo, dest, options)
    try:
        for split in {job.split for job in plan.jobs} | {s for splits in plan.yaml.values() for s in splits}:
            (dest / "images" / split).mkdir(parents=True, exist_ok=True)
            (dest / "labels" / split).mkdir(parents=True, exist_ok=True)
        with journal:
            for record in _run(todo, dest, _by_split(plan, options), workers, len(plan.jobs)):
                journal.add(record)
        return _finish(plan, dest, options, journal.records)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "the disk is full" if full else f"{error.filename or dest}: {error.strerror or error}"
        raise UserError(f"cannot write to '{dest}': {what}; the same command goes on from here") from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; the same command goes on from here") from None


def _by_split(plan: Plan, options: Options) -> dict[str, Options]:
    """Options by split: tiles without objects may be left out of what is trained on alone."""
    full = options.tiling and replace(options, tiling=replace(options.tiling, empty=1.0))
    trained = plan.yaml.get("train", ())
    return {job.split: options if job.split in trained or not full else full for job in plan.jobs}


def _run(todo: list[Job], dest: Path, options: dict[str, Options], workers: int, total: int) -> Iterator[dict]:
    """Convert, and yield the records as they come."""
    budget, jobs, running = Budget(_BYTES), iter(todo), set()
    bar = TQDM(total=total, initial=total - len(todo), desc="Converting", unit="img")
    pool = ThreadPoolExecutor(workers)
    try:
        while True:
            while len(running) < 4 * workers and (job := next(jobs, None)) is not None:
                running.add(pool.submit(_record, job, dest, options[job.split], budget))
            if not running:
                break
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in sorted(done, key=lambda f: f.exception() is not None):  # what is finished is noted first
                yield future.result()
                bar.update(1)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        bar.close()


def _record(job: Job, dest: Path, options: Options, budget: Budget) -> dict:
    """Convert an image; what it was made of is the file as it was listed, which may have changed since."""
    return {**convert_one(job, dest, options, budget), "stamp": list(job.image.stamp)}


def _check_disk(todo: list[Job], dest: Path, options: Options) -> None:
    """Say what will be written, and refuse where it cannot fit."""
    if options.tiling:
        tiling, bytes_ = options.tiling, 0.0
        shown = sum(scale**2 for scale in tiling.scales) / (1 - tiling.overlap / tiling.size) ** 2
        for job in todo:
            growth = _GROWTH[tiling.format][job.image.path.suffix.lower() in (".jpg", ".jpeg", ".mpo", ".avif", ".jp2")]
            bytes_ += job.image.size * shown * growth
    else:
        bytes_ = sum(job.image.size for job in todo if job.image.member) + (4096.0 + _rewritten(todo)) * len(todo)
    free = shutil.disk_usage(dest).free
    if not todo:
        return print(f"all images are in {dest} already", flush=True)
    print(f"{len(todo)} images, about {_human(bytes_)} to write to {dest} ({_human(free)} free)", flush=True)
    if bytes_ + _SPARE > free:
        room = f"has {_human(free)} free and needs about {_human(bytes_)}, with {_human(_SPARE)} left over"
        raise UserError(f"'{dest}' {room}; give a DEST with more room")


def _rewritten(todo: list[Job]) -> float:
    """Bytes an image of PNG files written instead of what Ultralytics does not read as it is, from a few images."""
    few, size = todo[:: len(todo) // 16 + 1], 0.0
    for job in few:
        with suppress(ValueError):
            picture = inspect(job.image)
            size += 0 if picture.plain else 2.0 * picture.width * picture.height
    return size / max(len(few), 1)


def _human(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _finish(plan: Plan, dest: Path, options: Options, records: list[dict]) -> Census:
    """Write the tables, then data.yaml, which says that all is there, and a picture of the tables."""
    records = sorted(records, key=lambda r: (r["split"], r["image"]))
    if options.tiling:
        tiles = [[r["split"], row[0], r["image"], *row[1:]] for r in records for row in r.get("tiles", ())]
        _table(tiles, ["split", "tile", "image", *TILES[1:]], dest / "tiles.csv")
        objects = [
            [r["split"], r["image"], plan.names[kind], *rest] for r in records for kind, *rest in r.get("objects", ())
        ]
        _table(objects, ["split", "image", "class", "difficult", *CORNERS], dest / "objects.csv")
    folders = _folders(plan, records)
    census = Census(plan, records)
    census.save(dest)
    if not census.images:
        raise UserError(f"none of the {len(records)} images could be converted; see {dest / 'problems.csv'}")
    content = {key: paths[0] if len(paths) == 1 else paths for key, paths in folders.items()}
    YAML.save(dest / "data.part.yaml", {**content, "names": dict(enumerate(plan.names))})
    (dest / "data.part.yaml").replace(dest / "data.yaml")
    census.draw(dest / "census.png")
    return census


def _folders(plan: Plan, records: list[dict]) -> dict[str, list[str]]:
    """The folders behind the keys of data.yaml; what is missing there is a problem of the plan."""
    written = {r["split"] for r in records if r["images"]}
    there = {key: [s for s in splits if s in written] for key, splits in plan.yaml.items()}
    for key in ("train", "val"):
        if not there.get(key):
            plan.problems.setdefault("data.yaml names no images, as none were converted", []).append(key)
    if there.get("val") and set(there["val"]) <= set(there["train"]):
        plan.problems.setdefault("data.yaml validates on training images, as there are no others", []).append("val")
    return {key: [f"images/{s}" for s in splits] for key, splits in there.items() if splits}


def _table(rows: list[list], columns: list[str], path: Path) -> None:
    part = path.with_suffix(".part")
    pd.DataFrame(rows, columns=columns).to_csv(part, index=False, errors="backslashreplace")  # names may be no text
    part.replace(path)
