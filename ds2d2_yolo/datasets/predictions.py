"""What a detector says of the tiles of a data set."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from ultralytics import YOLO
from ultralytics.engine.results import Results
from ultralytics.utils import LOGGER, TQDM

import ds2d2_yolo.restricted  # noqa: F401  so that checkpoints run nothing
from ds2d2_yolo.datasets.exported import fixed_by_export
from ds2d2_yolo.datasets.tile_tables import Tiled, tile_files
from ds2d2_yolo.datasets.tiles import rectangles
from ds2d2_yolo.errors import UserError
from ds2d2_yolo.report.coco import check_classes
from ds2d2_yolo.report.runtimes import made_for
from ds2d2_yolo.unhurried import whole_nms

_PART = 500  # tiles whose detections are kept in one file
FIELDS = ("tile", "classes", "scores", "corners")


@dataclass
class Detections:
    """What a detector says of tiles.

    Attributes:
        tile: ``(n,)`` rows of ``Tiled.tiles``.
        classes: ``(n,)`` indices.
        scores: ``(n,)`` 0 to 1.
        corners: ``(n, 4, 2)`` xy in pixels of the tile's file.
        rotated: Whether the detector gives rotated boxes.
    """

    tile: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    corners: np.ndarray
    rotated: bool = False

    @classmethod
    def joined(cls, parts: list[Detections], rotated: bool) -> Detections:
        """Put parts together; none at all is allowed."""
        empty = cls(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros((0, 4, 2), "f4"))
        parts = parts or [empty]
        return cls(*(np.concatenate([getattr(p, f) for p in parts]) for f in FIELDS), rotated)


def detections_of(
    model: str | Path,
    tiled: Tiled,
    imgsz: int | None = None,
    batch: int = 16,
    device: str | None = None,
    conf: float | None = None,
    iou: float | None = None,
    max_det: int = 1000,
    parts: Path | None = None,
) -> Detections:
    """Run a detector on all tiles by Ultralytics' own predictor.

    Args:
        model: A .pt file or an exported one, of the task detect or obb.
        tiled: The tiles.
        imgsz: Default: what the model was trained at, or exported for.
        batch: Tiles at a time.
        device: As Ultralytics has it.
        conf: Least score; default as in Ultralytics' validation: 0.001, for rotated boxes 0.01.
        iou: Of the NMS within a tile; default: 0.7. RetinaNet and Faster R-CNN have defaults of their own of both.
        max_det: Most detections of a tile.
        parts: A folder to keep detections in as they come; those that are there are not made again.

    Raises:
        UserError: ``batch`` or ``imgsz`` below 1; the model is missing, of another task or of other classes; a tile's
            file is missing or unreadable; ``parts`` holds those of another model, other tiles or settings.
    """
    for name, value in (("batch", batch), ("imgsz", imgsz)):
        if value is not None and value < 1:
            raise UserError(f"{name}={value} must be a whole number, 1 or more")
    detector = _detector(model, tiled)
    if imgsz is None and Path(model).suffix != ".pt":
        imgsz = made_for(model)  # of a file for any size Ultralytics would take 640
    fixed = fixed_by_export(model)
    least, overlap = _thresholds(detector, conf, iou)
    settings = {"conf": least, "iou": overlap, "max_det": max_det} | ({"imgsz": imgsz} if imgsz else {})
    for line in (fixed.low_scores_lost(least), fixed.unheard({"conf": conf, "iou": iou})):
        if line:
            LOGGER.warning(line)
    files = tile_files(tiled)
    if parts:
        _claim(Path(parts), {**settings, "model": hash_of(Path(model)), **_hashes(tiled, files)})
    found = _in_parts(detector, tiled, files, {**settings, "batch": batch, "device": device}, parts)
    detections = Detections.joined(found, detector.task == "obb")
    if fixed.final and fixed.most is None and detector.predictor:
        fixed = replace(fixed, most=_most(detector.predictor))
    if line := fixed.crowded(np.bincount(detections.tile, minlength=len(tiled.tiles)), max_det):
        LOGGER.warning(line)
    return detections


def _detector(model: str | Path, tiled: Tiled) -> YOLO:
    if not Path(model).exists():
        raise UserError(f"model '{model}' does not exist")
    detector = YOLO(str(model))
    if detector.task not in {"detect", "obb"}:
        raise UserError(f"model '{model}' is made for the task '{detector.task}', not for detection")
    check_classes(detector.names, tiled.names, model)
    return detector


def _thresholds(detector: YOLO, conf: float | None, iou: float | None) -> tuple[float, float]:
    """The least score and the IoU of NMS: a head that has NMS inside is given those that are not None."""
    options = getattr(getattr(detector.model, "model", [None])[-1], "options", None)
    if not (hasattr(options, "score") and hasattr(options, "nms_iou")):
        default = 0.01 if detector.task == "obb" else 0.001
        return default if conf is None else conf, 0.7 if iou is None else iou
    # Ultralytics hands them to heads of its own alone
    options.score = options.score if conf is None else conf
    options.nms_iou = options.nms_iou if iou is None else iou
    return options.score, options.nms_iou


def _hashes(tiled: Tiled, files: list[str]) -> dict[str, str]:
    """What tells tiles from others of the same names, without reading the images."""
    sizes = pd.DataFrame({"file": [Path(f).name for f in files], "size": [Path(f).stat().st_size for f in files]})
    return {"tiles": hash_of(tiled.tiles), "files": hash_of(sizes)}


def _most(predictor) -> int | None:
    """How many detections an image a file with NMS, or without need of it, gives: (images, those, 6; rotated 7)."""
    out = predictor.inference(predictor.preprocess(predictor.batch[1]))
    out = out[0] if isinstance(out, (list, tuple)) else out
    return out.shape[1] if out.ndim == 3 and out.shape[2] in (6, 7) else None


def _in_parts(detector: YOLO, tiled: Tiled, files: list[str], settings: dict, parts: Path | None) -> list[Detections]:
    """Detect in some tiles at a time, keeping what was found."""
    found, started = [], 0
    with TQDM(total=len(files), desc="tiles", unit="tile") as bar:
        try:
            for start in range(0, len(files), _PART):
                stop = min(start + _PART, len(files))
                part = Path(parts) / f"{start:08d}.npz" if parts else None
                detections = _load(part, start, stop) if part else None
                if detections is None:
                    detections = _predict(detector, files[start:stop], start, tiled, settings, bar)
                    if part:
                        _save(part, detections)
                else:
                    bar.update(stop - start)
                found.append(detections)
                started = stop
        except KeyboardInterrupt as interrupt:
            if parts:
                interrupt.add_note(f"the same command goes on from tile {started} of {len(files)}")
            raise
    return found


def _predict(detector: YOLO, files: list[str], start: int, tiled: Tiled, settings: dict, bar) -> Detections:
    rows = {file: start + i for i, file in enumerate(files)}
    found = []
    with tempfile.TemporaryDirectory() as folder:
        listing = Path(folder, "tiles.txt")  # a list in memory would be one batch, all of it, whatever batch says
        listing.write_text("\n".join(files))
        with whole_nms():
            for result in detector.predict(listing, stream=True, save=False, verbose=False, **settings):
                found.append(_of_tile(result, rows.pop(result.path), tiled))
                bar.update(1)
    if rows:
        raise UserError(f"{len(rows)} tiles cannot be read, '{next(iter(rows))}' among them; convert again")
    return Detections.joined(found, False)


def _of_tile(result: Results, row: int, tiled: Tiled) -> Detections:
    boxes = result.boxes if result.obb is None else result.obb
    corners = rectangles(boxes.xyxy.cpu().numpy()) if result.obb is None else boxes.xyxyxyxy.cpu().numpy()
    classes = boxes.cls.cpu().numpy().astype(np.int32)
    known = np.isin(classes, list(tiled.names))  # the model may have more classes than the data
    corners = corners.reshape(-1, 4, 2)[known].astype(np.float32)
    return Detections(np.full(known.sum(), row, np.int32), classes[known], boxes.conf.cpu().numpy()[known], corners)


def _claim(parts: Path, settings: dict) -> None:
    """Note what the parts are made with, and refuse those made with something else."""
    parts.mkdir(parents=True, exist_ok=True)
    note, text = parts / "settings.json", json.dumps(settings, indent=1, sort_keys=True)
    held = note.read_text() if note.exists() and any(parts.glob("*.npz")) else text
    older = json.dumps({k: v for k, v in settings.items() if k != "files"}, indent=1, sort_keys=True)
    if held not in (text, older):  # an older version knew nothing of the files
        raise UserError(
            f"'{parts}' holds detections of another model, other tiles or settings; delete it, or give another DEST"
        )
    note.write_text(text)


def hash_of(what: Path | pd.DataFrame) -> str:
    """Return what tells a file, the files of a folder or a table from others: hexadecimal digits."""
    digest = hashlib.sha256()
    if isinstance(what, pd.DataFrame):
        digest.update(pd.util.hash_pandas_object(what, index=False).to_numpy().tobytes())
    else:
        for file in [what] if what.is_file() else sorted(f for f in what.rglob("*") if f.is_file()):
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _save(path: Path, detections: Detections) -> None:
    part = path.with_name(f".{path.name}")
    try:
        with part.open("wb") as file:
            np.savez(file, **{f: getattr(detections, f) for f in FIELDS})
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _load(path: Path, start: int, stop: int) -> Detections | None:
    """Read a part; None if it is missing or damaged."""
    try:
        with np.load(path) as arrays:
            found = Detections(*(arrays[f] for f in FIELDS))
    except Exception:  # numpy and zipfile fail in many ways on a file cut short; it is made again then
        return None
    return found if ((found.tile >= start) & (found.tile < stop)).all() else None


def predictions_from_json(path: str | Path, tiled: Tiled) -> Detections:
    """Read ``predictions.json`` of Ultralytics' validation of the tiles (``save_json=True``).

    Its boxes are rounded to 0.001 px and its scores to five digits. ``category_id`` counts from 1.

    Raises:
        UserError: It is missing or no such file, or names tiles or classes that the data set does not have.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"predictions file '{path}' does not exist")
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        # image_id is a number where the stem is one, and its leading zeros are lost
        stems = [Path(row["file_name"]).stem if "file_name" in row else str(row["image_id"]) for row in rows]
        rotated = any("poly" in row for row in rows)
        corners = np.array([row.get("poly") or _around(row["bbox"]) for row in rows], np.float64).reshape(-1, 4, 2)
        classes = np.array([row["category_id"] for row in rows], np.int32) - 1
        scores = np.array([row["score"] for row in rows], np.float64)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(f"'{path}' is no predictions.json of Ultralytics ({type(error).__name__}: {error})") from error
    index = {tile: i for i, tile in enumerate(tiled.tiles["tile"])}
    if unknown := Counter(stem for stem in stems if stem not in index):
        raise UserError(f"'{path}' names {len(unknown)} tiles unknown to the split, {next(iter(unknown))} among them")
    if not np.isin(classes, list(tiled.names)).all():
        raise UserError(f"'{path}' names classes that the data set does not have ({len(tiled.names)} classes)")
    return Detections(np.array([index[stem] for stem in stems], np.int32), classes, scores, corners, rotated)


def _around(box: list[float]) -> list[float]:
    x, y, width, height = box
    return [x, y, x + width, y, x + width, y + height, x, y + height]
