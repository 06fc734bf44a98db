"""The folder in which a report grows: what each finished model found, so that an interrupted run need not repeat it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from ultralytics.utils.files import increment_path

from ds2d2_yolo.errors import UserError
from ds2d2_yolo.report.detections import Detections, Truth
from ds2d2_yolo.report.files import replace as _replace

VERSION = 4  # of the files below; those of another version are made again


def report_folder(save_dir: str | Path | None, settings: dict) -> Path:
    """Where a report goes: `save_dir`, or a new folder `project`/`name`, from here; with `exist_ok` an old one.

    These three are taken out of `settings`: nothing that is measured depends on them. Raises UserError where it is a
    training run's: both have a ``results.csv``.
    """
    project, name, again = (settings.pop(key, None) for key in ("project", "name", "exist_ok"))
    folder = Path(str(project or "runs")) / str(name or "report")
    folder = Path(save_dir) if save_dir else increment_path(folder, exist_ok=bool(again), sep="-")
    if is_training_run(folder):
        said = f"'{folder}' is a training run's folder, whose results.csv a report would replace"
        raise UserError(f"{said}; name another: {'save_dir=' if save_dir else 'name='}")
    return folder


def is_training_run(folder: Path) -> bool:
    """Whether this is a training run's folder, and no report's."""
    try:
        header = (folder / "results.csv").read_text(encoding="utf-8-sig").partition("\n")[0]
    except (OSError, UnicodeDecodeError):  # none yet, perhaps
        return (folder / "args.yaml").exists() and (folder / "weights").is_dir()
    return "epoch" in header.replace(" ", "").split(",")


class Bundle:
    """What was measured so far, in ``folder/measured``.

    A model's entry counts as long as its file, the data set and the evaluation's settings are those it was made with.

    Args:
        folder: The report's folder; it is made.
        settings: All that detections depend on besides the model: data file, image size, split, NMS ...
        objects: What stands for the images and their labels; rating itself may change it, by a download or by mending
            a damaged JPEG: `objects` may be set anew.

    Raises:
        UserError: The folder cannot be written.
    """

    def __init__(self, folder: str | Path, settings: dict, objects: str = ""):
        self.folder, self._settings = Path(folder), {k: str(v) for k, v in sorted(settings.items())}
        self.objects = objects
        self._data = _stamp(Path(str(settings["data"])))
        self._store = self.folder / "measured"
        self._new = [folder for folder in (self._store, self.folder, *self.folder.parents) if not folder.exists()]
        with self._writing():
            self._store.mkdir(parents=True, exist_ok=True)
            probe = self._store / ".writable"
            probe.touch()
            probe.unlink()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            said = f"cannot write the report to '{self.folder}' ({error.strerror or error})"
            raise UserError(f"{said}; make room there, or name another folder: save_dir=") from error

    def is_empty(self) -> bool:
        """Whether nothing was measured yet."""
        return not any(self._store.iterdir())

    def tidy(self) -> None:
        """Remove the folders that this made where nothing came into them."""
        for folder in self._new:
            with suppress(OSError):  # there is something in it
                folder.rmdir()

    def key(self, model: str | Path) -> str:
        """A name for all that a model's detections depend on."""
        what = [VERSION, self._settings, self._data, self.objects, os.path.abspath(model), _stamp(Path(model))]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]

    def detections(self, model: str | Path) -> tuple[Truth, Detections, dict] | None:
        """What `keep` stored of this model, or None."""
        path = self._store / f"{self.key(model)}.npz"
        try:
            about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            return _truth(self._store / about["truth"]), Detections.load(path), about["about"]
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return None  # never made, or cut short: it is made again

    def keep(self, model: str | Path, truth: Truth, found: Detections, about: dict) -> None:
        """Store a finished model's detections and plain values `about` it; the entry appears whole or not at all."""
        arrays = {"shapes": truth.shapes, "image": truth.image, "cls": truth.cls, "box": truth.box}
        text = json.dumps({"images": truth.images, "names": truth.names}).encode()
        digest = hashlib.sha256(text + b"".join(np.ascontiguousarray(a).tobytes() for a in arrays.values()))
        name = f"truth-{digest.hexdigest()[:16]}.npz"
        arrays["text"] = np.frombuffer(text, np.uint8)
        path = self._store / f"{self.key(model)}.npz"
        with self._writing():
            if not (self._store / name).exists():
                _replace(self._store / name, lambda f: np.savez_compressed(f, **arrays))
            found.save(path)
        self._write(path.with_suffix(".json"), {"truth": name, "about": about})

    def load(self, name: str, key: list[str]) -> dict | list | None:
        """What `save` stored under `name` for this key, or None."""
        try:
            stored = json.loads((self._store / f"{name}.json").read_text(encoding="utf-8"))
            return stored["value"] if stored["key"] == key else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save(self, name: str, key: list[str], value: dict | list) -> None:
        """Store plain values that hold for `key` alone."""
        self._write(self._store / f"{name}.json", {"key": key, "value": value})

    def _write(self, path: Path, value) -> None:
        with self._writing():
            _replace(path, lambda f: f.write(json.dumps(value).encode()))


def _truth(path: Path) -> Truth:
    with np.load(path, allow_pickle=False) as data:
        text = json.loads(data["text"].tobytes())
        names = {int(k): v for k, v in text["names"].items()}
        arrays = {name: data[name] for name in ("shapes", "image", "cls", "box")}
    return Truth(images=tuple(text["images"]), names=names, **arrays)


def _stamp(path: Path) -> list[int]:
    """Size and time of a file, or of all in a folder (OpenVINO's models are folders)."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    stats = [file.stat() for file in files]
    return [len(stats), sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)]
