"""The tables that ``convert`` leaves beside a tiled data set: where its tiles lie, and what the whole images hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import shapely
from ultralytics.utils import DATASETS_DIR, LOGGER, YAML

from ds2d2_yolo.datasets.source import IMAGES
from ds2d2_yolo.errors import UserError
from ds2d2_yolo.paths import find_config

CORNERS = [f"{axis}{i}" for i in range(1, 5) for axis in "xy"]
_TILE = ["tile", "x", "y", "width", "height", "tile_width", "tile_height", "image_width", "image_height"]
_TEXTS = {"split": str, "tile": str, "image": str, "class": str, "difficult": str}  # a stem such as 0007 is no number


@dataclass
class Tiled:
    """One split of a tiled data set.

    Attributes:
        names: Classes by index.
        tiles: As in ``tiles.csv``; the tiles of an image lie together.
        objects: As in ``objects.csv``, ``class`` as an index, or None where the images have no ground truth.
        folders: Where the tiles' files lie.
        root: The data set's folder.
    """

    names: dict[int, str]
    tiles: pd.DataFrame
    objects: pd.DataFrame | None
    folders: list[Path]
    root: Path | None = None


def read_tiled(data_yaml: str | Path, split: str) -> Tiled:
    """Read a split of a tiled data set.

    Args:
        data_yaml: ``data.yaml`` of the data set.
        split: A key of it (train, val, test), or the name of a folder of tiles.

    Raises:
        UserError: It is not there, not tiled, or has no such split.
    """
    data_yaml = Path(find_config(data_yaml, "data"))
    if not data_yaml.is_file():
        raise UserError(f"data file '{data_yaml}' does not exist")
    data = YAML.load(data_yaml)
    if not isinstance(data, dict) or not isinstance(data.get("names"), dict | list):
        raise UserError(
            f"data file '{data_yaml}' has no names of classes; give the data.yaml that the conversion wrote"
        )
    root = _root(data_yaml, data.get("path"))
    tiles = _read(root / "tiles.csv", ["split", "image", *_TILE])
    given = data.get(split) or []
    folders = [root / str(f) for f in (given if isinstance(given, list) else [given])]
    if not folders and split in set(tiles["split"]):
        folders = [root / "images" / split]
    known = tiles["split"].isin([f.name for f in folders])
    if not known.any():
        raise UserError(
            f"'{data_yaml}' has no tiles for split={split}; it has {', '.join(sorted(set(tiles['split'])))}"
        )
    tiles = tiles[known].sort_values(["split", "image", "tile"], kind="stable", ignore_index=True)
    if (double := tiles["tile"].duplicated()).any() or tiles.groupby("image")["split"].nunique().max() > 1:
        name = tiles["tile"][double].iloc[0] if double.any() else "an image"
        raise UserError(f"'{root / 'tiles.csv'}' names {name} twice in split={split}")
    names = data["names"]
    names = {int(i): str(n) for i, n in (names.items() if isinstance(names, dict) else enumerate(names))}
    _warn_of_gaps(tiles)
    return Tiled(names, tiles, _objects(root / "objects.csv", folders, names), folders, root)


def _root(data_yaml: Path, path: str | None) -> Path:
    """The tiled data set's folder: where Ultralytics looks for its images, or from the data file on."""
    places = [Path(path), DATASETS_DIR / path, data_yaml.parent / path] if path else [data_yaml.parent]
    root = next((place for place in places if (place / "tiles.csv").is_file()), None)
    if root:
        return root.resolve()
    root = next((place.resolve() for place in places if place.is_dir()), None)
    if root is None:
        raise UserError(f"data file '{data_yaml}' says path: {path}, which does not exist; convert the data set first")
    raise UserError(
        f"'{root}' has no tiles.csv: the data set is not tiled, and ds2d2 val rates it as it is; merge is for what "
        "python -m ds2d2_yolo.datasets dota has cut"
    )


def scenes_of(images: Sequence[str]) -> np.ndarray | None:
    """Number the scenes that images are tiles of, ``(images,)`` from 0 on; None where there is no ``tiles.csv``.

    A conversion's tiles lie in ``images/SPLIT`` beside that table; an image that it does not name is a scene by itself.
    """
    known = {}
    for folder in {Path(image).parent for image in images}:
        table = folder.parent.parent / "tiles.csv"
        if folder.parent.name == "images" and table.is_file():
            try:
                rows = _read(table, ["split", "image", "tile"])
            except UserError as error:
                LOGGER.warning(f"{error}; its tiles count as images of their own")
                continue
            rows = rows[rows["split"] == folder.name]
            known |= {(folder, t): (folder, s) for t, s in zip(rows["tile"], rows["image"], strict=True)}
    scenes = [known.get((path.parent, path.stem)) or path for path in map(Path, images)]
    if not any(isinstance(scene, tuple) for scene in scenes):
        return None
    return pd.factorize(pd.Series(scenes, dtype=object))[0]


def _read(path: Path, columns: list[str]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=_TEXTS, keep_default_na=False)
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise UserError(f"'{path}' cannot be read ({error}); convert the data set again") from error
    for column in columns:
        text = column in _TEXTS or table.empty
        if column not in table or not (text or pd.api.types.is_numeric_dtype(table[column])):
            raise UserError(f"'{path}' lacks {column}, or numbers there; convert the data set again")
    return table


def _objects(path: Path, folders: list[Path], names: dict[int, str]) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    objects = _read(path, ["split", "image", "class", "difficult", *CORNERS])
    objects = objects[objects["split"].isin([f.name for f in folders])].reset_index(drop=True)
    if objects.empty:
        return None
    objects["class"] = objects["class"].map({name: i for i, name in names.items()})
    if objects["class"].isna().any():
        raise UserError(f"'{path}' names a class that the data file does not; convert the data set again")
    text = objects["difficult"].str.lower()
    return objects.assign(**{"class": objects["class"].astype(int), "difficult": text.isin(["1", "true"])})


def _warn_of_gaps(tiles: pd.DataFrame) -> None:
    low, size = tiles[["x", "y"]].to_numpy(float), tiles[["width", "height"]].to_numpy(float)
    frames = pd.Series(shapely.box(*low.T, *(low + size).T))
    area = frames.groupby(tiles["image"]).agg(lambda own: shapely.area(shapely.union_all(own.to_numpy())))
    first = tiles.groupby("image").first()
    if gaps := int((area < first["image_width"] * first["image_height"] - 0.5).sum()):
        LOGGER.warning(f"{gaps} of {len(first)} images are not covered by their tiles: what lies between is not found")


def tile_files(tiled: Tiled) -> list[str]:
    """Return the paths of the tiles' files, in the order of the tiles.

    Raises:
        UserError: Some are missing.
    """
    there = {
        file.stem: str(file.absolute())
        for folder in tiled.folders
        if folder.is_dir()
        for file in folder.iterdir()
        if file.suffix.lower() in IMAGES
    }
    missing = [tile for tile in tiled.tiles["tile"] if tile not in there]
    if missing:
        folder = " or ".join(f"'{f}'" for f in tiled.folders)
        raise UserError(
            f"{len(missing)} tiles are not in {folder}, {missing[0]} among them; convert the data set again"
        )
    return [there[tile] for tile in tiled.tiles["tile"]]
