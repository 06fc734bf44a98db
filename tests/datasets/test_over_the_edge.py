"""Objects that reach over the image's edge, tiled: their labels, and the rating of whole images."""

import json

import numpy as np
import pandas as pd
import pytest

from ds2d2_yolo.datasets import coco_json, dota
from ds2d2_yolo.datasets.convert import convert
from ds2d2_yolo.datasets.one_image import Options
from ds2d2_yolo.datasets.source import Source
from ds2d2_yolo.datasets.submit import run
from ds2d2_yolo.datasets.tile_tables import CORNERS
from ds2d2_yolo.datasets.tiles import Tiling, rectangles
from tests.datasets.downloads import coco, label_txt, picture, write

RATINGS = ["voc07", "voc12", "coco_ap", "coco_ap50", "coco_ap75"]
SIZE = (300, 200)


def tiled(kind, root, dest, rotated=False, difficult=True):
    """Convert to tiles that show each object whole once or more; the data file, the table of objects, the census."""
    source = Source(root)
    options = Options(rotated, difficult, Tiling(size=150, overlap=100, keep=1.0))
    census = convert(kind.plan(source), dest, options, source.root, 1)
    return dest / "data.yaml", pd.read_csv(dest / "objects.csv"), census


def detected(data_yaml, split="val"):
    """Detections that are the labels of the tiles, as Ultralytics' validation writes them."""
    root, rows = data_yaml.parent, []
    for tile in pd.read_csv(root / "tiles.csv").query(f"split == '{split}'").itertuples():
        for line in (root / "labels" / split / f"{tile.tile}.txt").read_text().splitlines():
            kind, *values = map(float, line.split())
            points = np.reshape(values, (-1, 2)) * (tile.tile_width, tile.tile_height)
            if len(points) == 2:  # centre and size
                shape = {"bbox": [*(points[0] - points[1] / 2), *points[1]]}
            else:
                shape = {"bbox": [0, 0, 1, 1], "poly": points.ravel().tolist()}
            name = {"image_id": tile.tile, "file_name": f"{tile.tile}.png"}
            rows.append({**name, "category_id": int(kind) + 1, "score": 0.9, **shape})
    path = root / "seen" / "predictions.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(rows))
    return path


def test_an_upright_box_is_rated_by_its_inner_part(tmp_path):
    root, boxes = tmp_path / "in", [[-60, 20, 100, 50], [250, 180, 80, 90], [100, 100, 40, 40]]
    for split in ("train", "val"):
        picture(root / split / "a.png", *SIZE)
        content = coco([(1, "a.png")], [(1, 7, box) for box in boxes])
        content["images"][0] |= {"width": SIZE[0], "height": SIZE[1]}
        write(root / split / "notes.json", json.dumps(content))
    data_yaml, objects, census = tiled(coco_json, root, tmp_path / "out")
    inner = rectangles([(0, 20, 40, 70), (250, 180, 300, 200), (100, 100, 140, 140)]).reshape(3, 8)
    np.testing.assert_allclose(objects.query("split == 'val'")[CORNERS], inner)
    assert census.objects.loc["ship"].tolist() == [3, 3, 2, 4, 0]  # 50 x 20 pixels are small
    means = run(data_yaml, predictions=detected(data_yaml))["means"]
    assert [means[key] for key in RATINGS] == pytest.approx([100] * 5)


def turned(centre, size, angle):
    axes = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
    return np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * np.divide(size, 2) @ axes + centre


@pytest.fixture
def dota_folder(tmp_path):
    """Slanting objects, apart from one another, along all edges and within; every fourth is difficult."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        places = [(x, y) for x in (0, 75, 150, 225, 300) for y in (0, 66, 133, 200)]
        rows = [turned(c + rng.uniform(-6, 6, 2), (46, 18), rng.uniform(0.2, 1.3)).round(1) for c in places]
        picture(tmp_path / "DOTA" / split / "images" / "P1.png", *SIZE)
        note = label_txt([(row, "ship", i % 4 == 0) for i, row in enumerate(rows)])
        write(tmp_path / "DOTA" / split / "labelTxt" / "P1.txt", note)
    return tmp_path / "DOTA"


@pytest.mark.parametrize("rotated", [False, True])
def test_slanting_objects_are_rated_by_their_inner_parts(dota_folder, tmp_path, rotated):
    data_yaml, objects, _ = tiled(dota, dota_folder, tmp_path / "out", rotated)
    corners = objects[CORNERS].to_numpy().reshape(-1, 4, 2)
    assert (corners >= 0).all() and (corners <= SIZE).all()
    assert (np.abs(corners[:, 1] - corners[:, 0]) > 1).all(1).any()  # those within stay as they were annotated
    means = run(data_yaml, predictions=detected(data_yaml))["means"]
    assert [means[key] for key in RATINGS] == pytest.approx([100] * 5)


def test_difficult_objects_keep_their_flag(dota_folder, tmp_path):
    """Left out of the labels, they are there in the ground truth, and need not be found."""
    data_yaml, objects, census = tiled(dota, dota_folder, tmp_path / "out", difficult=False)
    assert objects.query("split == 'val'")["difficult"].tolist() == [1, 0, 0, 0] * 5
    assert census.objects.loc["ship", ["train", "val"]].tolist() == [15, 15]
    result = run(data_yaml, predictions=detected(data_yaml), keep_difficult=False)
    assert result["table"].loc["ship", "objects"] == 15
    assert [result["means"][key] for key in RATINGS] == pytest.approx([100] * 5)


def test_two_boxes_that_differ_beyond_the_edge_alone(dota_folder, tmp_path):
    """As before, both are named: the tiles' labels go by the shape as annotated."""
    note = dota_folder / "val" / "labelTxt" / "P1.txt"
    write(note, label_txt([(rectangles([(x, 20, 60, 60)])[0], "ship", 0) for x in (-10, -12)]))
    _, objects, _ = tiled(dota, dota_folder, tmp_path / "out")
    assert objects.query("split == 'val'")[CORNERS].to_numpy().tolist() == [[0, 20, 60, 20, 60, 60, 0, 60]] * 2
