"""The demo data set: aerial scenes drawn on the spot, in YOLO format, the same on every machine.

from ds2d2_yolo.datasets.demo import prepare
data = prepare("datasets/demo")  # the path of its data.yaml
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

from ds2d2_yolo.datasets import layout, scenes, shapes, themes
from ds2d2_yolo.datasets.scenes import NAMES, draw_scene
from ds2d2_yolo.errors import UserError

__all__ = ("NAMES", "draw_scene", "prepare")

SPLITS = ("train", "val")
MANIFEST = "manifest.json"
OURS = {"images", "labels", "data.yaml", MANIFEST}
SHARE = 48  # images that are worth a process of their own


def prepare(root, train=240, val=80, size=320, seed=0) -> Path:
    """Draws the data set into the folder `root` unless it lies there already; returns the path of its data.yaml.

    `train` and `val` count the images, `size` is their side in pixels. An image depends on (seed, split, index) alone.
    The folder appears complete or not at all. Raises UserError on bad numbers, on a folder that cannot be written and
    on one that holds anything else.
    """
    root = Path(root).expanduser().absolute()
    wanted = _manifest(train, val, size, seed)
    if _complete(root, wanted):
        return root / "data.yaml"
    _check_replaceable(root)
    work = None
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
        _draw_all(work / "new", wanted)
        _swap(work, root, wanted)
    except OSError as error:
        raise UserError(f"cannot write the demo data set to '{root}' ({error.strerror or error})") from error
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)
    return root / "data.yaml"


def _manifest(train, val, size, seed) -> dict:
    """What makes one drawing equal to another; the drawing code counts."""
    for name, value, low, high in (("train", train, 1, 10**6), ("val", val, 1, 10**6), ("size", size, 32, 4096)):
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise UserError(f"{name}={value!r}: the demo data set needs a whole number from {low} to {high}")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise UserError(f"seed={seed!r}: the demo data set needs a whole number from 0 upwards")
    code = b"".join(Path(module.__file__).read_bytes() for module in (layout, scenes, shapes, themes))
    code += Path(__file__).read_bytes()
    drawn_by = hashlib.sha256(code.replace(b"\r\n", b"\n")).hexdigest()[:16]
    return {"train": train, "val": val, "size": size, "seed": seed, "drawn_by": drawn_by}


def _complete(root, wanted) -> bool:
    """Whether the folder holds this very data set, no file missing."""
    try:
        if json.loads((root / MANIFEST).read_text()) != wanted or not (root / "data.yaml").is_file():
            return False
    except (OSError, ValueError):
        return False
    return all(_image(root, split, i).is_file() and _label(root, split, i).is_file() for split, i in _every(wanted))


def _check_replaceable(root):
    """Only an empty folder, or one that an earlier call made, gives way."""
    try:
        held = {entry.name for entry in root.iterdir()}
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"'{root}' cannot be a data set folder ({error.strerror}); choose another") from error
    if held and (MANIFEST not in held or held - OURS):
        other = min(held - OURS, default="a data set")
        raise UserError(f"'{root}' already holds {other!r}, which is no demo data; choose another folder or empty it")


def _swap(work, root, wanted):
    """Puts the finished drawing in place of what was there."""
    if root.exists():
        if not any(root.iterdir()):
            root.rmdir()
        else:
            root.rename(work / "old")
    try:
        (work / "new").rename(root)
    except OSError:
        if _complete(root, wanted):  # another process was faster
            return
        if (work / "old").exists() and not root.exists():
            (work / "old").rename(root)
        raise


def _every(wanted):
    return [(split, index) for split in SPLITS for index in range(wanted[split])]


def _image(root, split, index):
    return root / "images" / split / f"{split}_{index:04d}.jpg"


def _label(root, split, index):
    return root / "labels" / split / f"{split}_{index:04d}.txt"


def _draw_all(root, wanted):
    """Draws every image with its labels, data.yaml and the manifest; large sets in several processes."""
    from ultralytics.utils import TQDM

    for split in SPLITS:
        _image(root, split, 0).parent.mkdir(parents=True)
        _label(root, split, 0).parent.mkdir(parents=True)
    names = "".join(f"  {number}: {name}\n" for number, name in enumerate(NAMES))
    (root / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames:\n{names}")
    todo = _every(wanted)
    count = max(1, min(os.cpu_count() or 1, 8, len(todo) // SHARE))
    with _helpers(root, wanted, count) as helpers:
        bar = TQDM(total=len(todo), desc="Drawing aerial scenes", unit="img")
        for split, index in todo[::count]:
            _draw(root, wanted, split, index)
            bar.update(min(count, len(todo) - bar.n))  # the helpers keep pace, about
        bar.close()
        for helper in helpers:
            helper.wait()
    for split, index in todo:  # what a helper that died left out
        if not _label(root, split, index).is_file():
            _draw(root, wanted, split, index)
    (root / MANIFEST).write_text(json.dumps(wanted, indent=1) + "\n")


@contextlib.contextmanager
def _helpers(root, wanted, count):
    """Processes that draw every `count`-th image from 1, 2, ... on.

    Not multiprocessing: its children run the caller's script again and import PyTorch, or are forked with its threads.
    """
    source = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
    code = "from ds2d2_yolo.datasets import demo; demo._help()"
    helpers = []
    try:
        for start in range(1, count):
            command = [sys.executable, "-c", code, str(root), json.dumps(wanted), str(start), str(count)]
            quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            helpers.append(subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, **quiet))
        yield helpers
    finally:
        for helper in helpers:
            if helper.poll() is None:
                helper.kill()
            helper.wait()


def _help():
    """What a helper process runs."""
    root, wanted, start, count = sys.argv[1:]
    cv2.setNumThreads(1)
    wanted = json.loads(wanted)
    for split, index in _every(wanted)[int(start) :: int(count)]:
        _draw(Path(root), wanted, split, index)


def _draw(root, wanted, split, index):
    """Draws and writes one image; the first of a split is drawn again until it shows an object."""
    for attempt in range(100):
        key = [wanted["seed"], SPLITS.index(split), index, attempt]
        image, labels = draw_scene(np.random.default_rng(key), wanted["size"])
        if index or len(labels):
            break
    file = _image(root, split, index)
    file.write_bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes())
    rows = (f"{int(row[0])} " + " ".join(f"{value:.6f}" for value in row[1:]) + "\n" for row in labels)
    _label(root, split, index).write_text("".join(rows))  # last: it says that this one is done
