"""``python -m ds2d2_yolo.datasets merge``: from tiles to whole images, DOTA's submission files and AP."""

from __future__ import annotations

import errno
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd
from ultralytics.utils import LOGGER

from ds2d2_yolo.datasets.claims import CLAIM, check_claim, clear
from ds2d2_yolo.datasets.merge import merge, write_json
from ds2d2_yolo.datasets.predictions import Detections, detections_of, hash_of, predictions_from_json
from ds2d2_yolo.datasets.tile_tables import CORNERS, Tiled, read_tiled
from ds2d2_yolo.datasets.tiles import bounds
from ds2d2_yolo.errors import UserError
from ds2d2_yolo.paths import DATA, find_config
from ds2d2_yolo.report.files import replace, replace_text
from ds2d2_yolo.report.voc import full_image_scores

_TASK = re.compile(r"Task([12])_(.+)\.txt")
_FIELDS = {"1": 10, "2": 6}
_HEADINGS = {"voc07": "AP50 VOC07", "voc12": "AP50 VOC12", "coco_ap": "AP COCO", "coco_ap50": "AP50 COCO"}


def run(
    data_yaml: str | Path,
    model: str | Path | None = None,
    predictions: str | Path | None = None,
    split: str = "val",
    target: str | Path | None = None,
    rotated: bool | None = None,
    iou_horizontal: float = 0.5,
    iou_rotated: float = 0.1,
    pieces: str = "drop",
    keep_difficult: bool = True,
    **settings,
) -> dict:
    """Merge the detections in tiles, write them for whole images, and rate them where there is ground truth.

    Written to ``target``: ``predictions.json`` (COCO results; ``image_id`` is the image's stem, ``category_id`` counts
    from 1, rotated boxes have ``poly`` besides ``bbox``), ``scores.csv``, and a folder of DOTA's submission files and
    its zip file (a warning instead where names do not fit the format). An earlier run's go with its
    ``predictions.json``. Detections of tiles are kept in ``target/tiles``: the same command goes on from there.

    Args:
        data_yaml: Of the tiled data set.
        model: Detector to run, or
        predictions: ``predictions.json`` of Ultralytics' validation of the tiles.
        split: Key of the data file, or folder.
        target: Folder of the results; default: ``merged/SPLIT-NAME`` beside the data file, of a shipped one in the data
            set (NAME: the model's run, or the folder of the predictions).
        rotated: Merge and write rotated boxes; default: if the detector gives them.
        iou_horizontal, iou_rotated, pieces, keep_difficult: See ``merge`` and ``full_image_scores``.
        settings: Of ``detections_of``, where a model is run: imgsz, batch, device, conf, iou, max_det.

    Returns:
        ``target`` (path), ``merged`` (table), ``table`` (AP a class) and ``means``: both None without ground truth.

    Raises:
        UserError: Model and predictions given both or not at all, predictions that lie where the result goes, a target
            that holds the result of others, or what the functions called here raise.
    """
    _check(model, predictions, settings)
    tiled = read_tiled(data_yaml, split)
    name = _short(model) if model else Path(predictions).absolute().parent.name
    target = Path(target or _beside(data_yaml, tiled) / "merged" / f"{split}-{name}")
    with _full_disk_is_said(target):
        detections = _detections(model, predictions, tiled, target, rotated, settings)
        rotated = detections.rotated if rotated is None else rotated
        merged = merge(detections, tiled.tiles, iou_horizontal, iou_rotated, rotated, pieces)
        images = tiled.tiles["image"].unique()
        print(f"{len(detections.tile)} detections in {len(tiled.tiles)} tiles, {len(merged)} in {len(images)} images")
        _place(merged, target, rotated)
        _submit(merged, tiled.names, images, target / f"Task{1 if rotated else 2}", rotated)
        table, means = _rate(merged, tiled, split, target, rotated, keep_difficult)
    return {"target": target, "merged": merged, "table": table, "means": means}


def _beside(data_yaml: str | Path, tiled: Tiled) -> Path:
    """Where results go: to the data file, or to the data set where the file is one that this package brings along."""
    shipped = Path(find_config(data_yaml, "data")).resolve().parent == DATA.resolve()
    return tiled.root if shipped else Path(data_yaml).parent


def _place(merged: pd.DataFrame, target: Path, rotated: bool) -> None:
    """Write the result in the place of an earlier run's, whose submissions and scores go with it."""
    again = (written := target / "predictions.json").is_file()
    write_json(merged, written, rotated)
    if again:
        clear(target)
    print(f"written {written}")


@contextmanager
def _full_disk_is_said(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"cannot write to '{target}': the disk is full; the same command goes on from here") from error


def _check(model, predictions, settings: dict) -> None:
    if (model is None) == (predictions is None):
        raise UserError("merge needs either model=best.pt or predictions=predictions.json")
    if unknown := set(settings) - {"imgsz", "batch", "device", "conf", "iou", "max_det"}:
        raise UserError(f"unknown setting '{min(unknown)}' of merge")
    if predictions is not None and settings:
        raise UserError(f"{min(settings)}= is for a model that is run, not for predictions=; leave it out")


def _detections(model, predictions, tiled: Tiled, target: Path, rotated: bool | None, settings: dict) -> Detections:
    """Those of the tiles, once it is sure that ``target`` holds the result of no others."""
    if model is not None:
        check_claim(target, None)
        return detections_of(model, tiled, parts=target / "tiles", **settings)
    detections, written = predictions_from_json(predictions, tiled), target / "predictions.json"
    if written.exists() and written.samefile(predictions):
        raise UserError(f"'{predictions}' would be replaced by what is merged from it; give another DEST")
    note = f"{hash_of(Path(predictions))}\n"
    check_claim(target, note)
    target.mkdir(parents=True, exist_ok=True)
    (target / CLAIM).write_text(note)
    if rotated is None and not len(detections.tile):
        LOGGER.warning(f"'{predictions}' is empty and taken for upright boxes (Task2); rotated=True makes it Task1")
    return detections


def _submit(merged: pd.DataFrame, names: dict[int, str], images: Collection[str], folder: Path, rotated: bool) -> None:
    if reason := _unfit(merged, names, folder):
        return LOGGER.warning(f"no submission files for DOTA's server: {reason}")
    write_submission(merged, names, folder, rotated)
    check_submission(folder, images, names)
    print(f"written {folder} and {folder.name}.zip")


def _rate(merged: pd.DataFrame, tiled: Tiled, split: str, target: Path, rotated: bool, keep_difficult: bool) -> tuple:
    if tiled.objects is None:
        LOGGER.info(f"no ground truth for split={split}: nothing to rate")
        return None, None
    table, means = full_image_scores(merged, tiled.objects, tiled.names, rotated, keep_difficult)
    replace_text(target / "scores.csv", table.to_csv())
    print(f"\n{_text(table, means)}\n")
    return table, means


def _short(path: str | Path) -> str:
    """The run's folder for best.pt and its like, else the file."""
    path = Path(path)
    return path.parts[-3] if path.parent.name == "weights" and len(path.parts) > 2 else path.stem


def _text(table: pd.DataFrame, means: Mapping[str, float]) -> str:
    mean = {"objects": table["objects"].sum(), "detections": table["detections"].sum(), **means}
    rows = pd.concat([table, pd.DataFrame([mean], index=["all"])[list(table.columns)]])
    text = rows.rename(columns=_HEADINGS).to_string(float_format="{:.2f}".format, na_rep="-")
    return f"{text}\nAP75 COCO {means['coco_ap75']:.2f}"


def write_submission(merged: pd.DataFrame, names: Mapping[int, str], folder: str | Path, rotated: bool) -> Path:
    """Write detections as DOTA's evaluation server takes them, a file a class, and a zip file of them.

    ``Task1_CLASS.txt`` has lines ``image score x1 y1 x2 y2 x3 y3 x4 y4`` for rotated boxes, ``Task2_CLASS.txt`` has
    ``image score xmin ymin xmax ymax`` for upright ones. Scores are written in full, pixels to 0.001. Spaces in the
    names of classes become hyphens, as in the data set. Files of the folder's earlier classes are removed.

    Args:
        merged: As ``merge`` returns it.
        names: Classes by index; each has its file, if an empty one.
        folder: Where to.
        rotated: Which of the two.

    Returns:
        The zip file, beside the folder.

    Raises:
        UserError: The stem of an image has a space, which the format does not allow, or two classes have one file.
    """
    folder, task = Path(folder), 1 if rotated else 2
    if reason := _unfit(merged, names, folder):
        raise UserError(reason)
    folder.mkdir(parents=True, exist_ok=True)
    found, files = dict(list(merged.groupby("class"))), []
    for index, name in names.items():
        files.append(folder / f"Task{task}_{_hyphened(name)}.txt")
        rows = found.get(index, merged[:0])
        values = rows[CORNERS].to_numpy(float)
        values = values if rotated else bounds(values.reshape(-1, 4, 2))
        lines = [
            f"{image} {score!r} {' '.join(f'{v:.3f}' for v in row)}\n"
            for image, score, row in zip(rows["image"], rows["score"].tolist(), values.tolist(), strict=True)
        ]
        replace_text(files[-1], "".join(lines))
    for file in folder.glob("Task*_*.txt"):
        if file not in files:
            file.unlink()
    replace(archive := folder.with_name(f"{folder.name}.zip"), lambda stream: _zip(files, stream))
    return archive


def _zip(files: list[Path], stream: BinaryIO) -> None:
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as zipped:
        for file in files:
            zipped.write(file, file.name)


def _unfit(merged: pd.DataFrame, names: Mapping[int, str], folder: Path) -> str | None:
    """Why names cannot be written in DOTA's format, or in this folder."""
    if spaces := [image for image in merged["image"].unique() if re.search(r"\s", image)]:
        return f"image '{spaces[0]}' has a space in its name, which DOTA's format does not allow"
    known, folded = {}, _folds_case(folder.absolute())
    for index, name in names.items():
        file = _hyphened(name)
        other = known.setdefault(file.casefold() if folded else file, index)
        if other != index:
            return f"classes '{names[other]}' and '{name}' would share one file; rename one in the data file"
    return None


def _folds_case(path: Path) -> bool:
    """Whether the disk takes names that differ by case alone for one, as Windows' and macOS' do."""
    for place in (path, *path.parents):
        other = place.name.swapcase()
        if other != place.name and place.exists():
            return place.with_name(other).exists() and place.with_name(other).samefile(place)
    return False


def _hyphened(name: str) -> str:
    return re.sub(r"[\s/]+", "-", name)


def check_submission(
    folder: str | Path, images: Collection[str], names: Mapping[int, str] | None = None
) -> dict[str, int]:
    """Check a folder against the format of DOTA's evaluation server.

    Args:
        folder: Of ``Task1_CLASS.txt`` or ``Task2_CLASS.txt``.
        images: The stems that are known.
        names: The classes that there must be, no others; default: any.

    Returns:
        Detections a class.

    Raises:
        UserError: The first thing that the server would not take, by file and line.
    """
    folder, images = Path(folder), set(images)
    files = sorted(f for f in folder.iterdir() if not f.name.startswith(".")) if folder.is_dir() else []
    if not files:
        raise UserError(f"'{folder}' holds no files of a submission")
    matches = {file: _TASK.fullmatch(file.name) for file in files}
    for file, match in matches.items():
        if match is None:
            raise UserError(f"'{file}' is named neither Task1_CLASS.txt nor Task2_CLASS.txt")
    if len({match[1] for match in matches.values()}) > 1:
        raise UserError(f"'{folder}' mixes files of both tasks; the server takes one at a time")
    if names is not None:
        wanted = {_hyphened(name) for name in names.values()}
        if different := wanted ^ {match[2] for match in matches.values()}:
            word = "lacks" if min(different) in wanted else "has"
            raise UserError(f"'{folder}' {word} a file of class '{min(different)}'")
    return {match[2]: _check_file(file, _FIELDS[match[1]], images) for file, match in matches.items()}


def _check_file(file: Path, fields: int, images: set[str]) -> int:
    number = 0
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            where, (image, *values) = f"'{file}', line {number}", line.split() or [""]
            if len(values) != fields - 1:
                raise UserError(f"{where}: {len(values) + bool(image)} fields where {fields} belong")
            if image not in images:
                raise UserError(f"{where}: image '{image}' is not known")
            try:
                score, *numbers = map(float, values)
            except ValueError:
                raise UserError(f"{where}: a field is no number") from None
            if not np.isfinite(numbers).all():
                raise UserError(f"{where}: a field is no finite number")
            if not 0 <= score <= 1:
                raise UserError(f"{where}: score {score} is not from 0 to 1")
            if fields == 6 and not (numbers[0] < numbers[2] and numbers[1] < numbers[3]):
                raise UserError(f"{where}: a box without width or height")
    return number
