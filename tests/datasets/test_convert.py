"""Whole conversions: what is written and counted, what an interruption leaves, what training reads of it."""

import errno
import os
import shutil
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
from ultralytics.cfg import get_cfg
from ultralytics.data import build_yolo_dataset
from ultralytics.data.utils import check_det_dataset

from ds2d2_yolo.datasets import convert as converting
from ds2d2_yolo.datasets import dior, dota, one_image
from ds2d2_yolo.datasets.convert import convert
from ds2d2_yolo.datasets.one_image import Options
from ds2d2_yolo.datasets.pictures import Budget
from ds2d2_yolo.datasets.source import Source
from ds2d2_yolo.datasets.tiles import Tiling
from ds2d2_yolo.errors import UserError
from tests.datasets.downloads import dior_folder, label_txt, picture, tree, write, xml, zipped

PLAIN = Options()
SPLITS = [(0, "train"), (1, "val")]
TILES = Options(tiling=Tiling(size=64, overlap=16))


@pytest.fixture
def root(tmp_path):
    return dior_folder(tmp_path / "down loads" / "DIOR")


@pytest.fixture
def large(tmp_path):
    """DOTA with one image of 150 x 100 pixels a split, objects turned by 45 degrees."""
    folder, rng = tmp_path / "DOTA", np.random.default_rng(0)
    for i, split in enumerate(("train", "val")):
        picture(folder / split / "images" / f"P{i}.png", 150, 100, seed=i)
        centres = rng.uniform((12, 12), (138, 88), (12, 2))
        diamonds = [c + np.array([(0, -8), (8, 0), (0, 8), (-8, 0)]) for c in centres.round()]
        rows = [(d, "ship", n % 5 == 0) for n, d in enumerate(diamonds)]
        write(folder / split / "labelTxt" / f"P{i}.txt", label_txt(rows))
    return folder


def run(root, dest, options=PLAIN, kind=dior, workers=2, **more):
    source = Source(root)
    return convert(kind.plan(source, **more), dest, options, source.root, workers)


def labels(dest, split, stem):
    rows = (dest / "labels" / split / f"{stem}.txt").read_text().splitlines()
    return np.array([[float(v) for v in row.split()] for row in rows]).reshape(len(rows), -1)


def read_by_ultralytics(dest, split, task="detect"):
    """The labels as training sees them, by image; nothing may have been refused."""
    data = check_det_dataset(dest / "data.yaml")
    paths = data[split] if isinstance(data[split], list) else [data[split]]
    dataset = build_yolo_dataset(get_cfg(overrides={"task": task, "imgsz": 64}), paths, 1, data, mode="val", stride=32)
    assert len(dataset) == sum(len(os.listdir(p)) for p in paths)
    return {os.path.basename(one["im_file"]): one for one in dataset.labels}


@pytest.mark.parametrize("packed", [False, True])
def test_dior(root, tmp_path, packed):
    if packed:
        for name in ("Annotations", "JPEGImages-trainval", "JPEGImages-test"):
            zipped(root / name)
    before, dest = tree(root), tmp_path / "out"
    census = run(root, dest)
    assert tree(root) == before
    assert census.splits.to_numpy().tolist() == [[2, 2, 3], [1, 1, 0], [1, 1, 1]]
    assert census.objects.loc["ship"].tolist() == [1, 0, 0, 1, 0, 0]
    assert census.objects.loc["dam"].tolist() == [1, 0, 0, 0, 1, 0]
    expected = [[13, 6 / 64, 12 / 48, 10 / 64, 20 / 48], [18, 32 / 64, 31.5 / 48, 4 / 64, 3 / 48]]
    np.testing.assert_allclose(labels(dest, "train", "00001"), expected, atol=1e-6)
    assert (dest / "images/train/00001.jpg").is_symlink() != packed
    seen = read_by_ultralytics(dest, "train")
    assert {name: len(one["cls"]) for name, one in seen.items()} == {"00001.jpg": 2, "00002.jpg": 1, "00003.jpg": 0}
    assert len(read_by_ultralytics(dest, "val")) == 1
    assert (dest / "census.png").stat().st_size > 10_000
    assert pd.read_csv(dest / "census.csv", index_col="class")["train"].sum() == 3


def test_rotated_boxes_keep_their_corners(root, tmp_path):
    turned = (10, 0, 20, 10, 10, 20, 0, 10)
    write(root / "Annotations" / dior.FOLDERS["rotated"] / "00001.xml", xml([("ship", *turned)], rotated=True))
    run(root, tmp_path / "out", Options(rotated=True), boxes="rotated")
    expected = np.reshape(turned, (4, 2)) / (64, 48)
    np.testing.assert_allclose(labels(tmp_path / "out", "train", "00001")[0, 1:], expected.ravel(), atol=1e-6)
    assert len(read_by_ultralytics(tmp_path / "out", "train", "obb")["00001.jpg"]["cls"]) == 1


def test_every_kind_of_bad_input_has_its_line(root, tmp_path):
    objects = [
        *[("ship", 1, 2, 11, 22)] * 2,
        ("ship", 70, 2, 80, 22),
        ("ship", 5, 5, 5, 20),
        ("ship", 60, 40, 90, 60),
        ("submarine", 1, 1, 9, 9),
    ]
    notes = root / "Annotations" / dior.FOLDERS["horizontal"]
    write(notes / "00001.xml", xml(objects, size=(640, 480)))
    write(notes / "00002.xml", "<annotation>")
    image = root / "JPEGImages-test" / "11726.jpg"
    image.write_bytes(image.read_bytes()[:-100])
    picture(root / "JPEGImages-trainval" / "00003.png", dtype=np.uint16)
    (root / "JPEGImages-trainval" / "00003.jpg").unlink()
    dest = tmp_path / "out"
    census = run(root, dest)
    found = {reason: number for _, (reason, number, _) in census.problems.iterrows() if "official" not in reason}
    assert found == {
        "data.yaml names no images, as none were converted": 1,  # there is no test split, which DIOR validates on
        "size in the annotation is not the image's (the image's is taken)": 1,
        "the same box twice": 1,
        "box outside the image": 1,
        "box of no area": 1,
        "box over the image's edge (its inner part is kept)": 1,
        "unknown class 'submarine'": 1,
        "annotation that is no whole XML file": 1,
        "unreadable image: cut short": 1,
        "image of mode RGB;16 (written as 8-bit RGB)": 1,
    }
    assert census.splits["images"].tolist() == [1, 1, 0]
    assert census.splits["boxes"].tolist() == [2, 0, 0]
    np.testing.assert_allclose(labels(dest, "train", "00001")[1, 1:], [62 / 64, 44 / 48, 4 / 64, 8 / 48], atol=1e-6)
    assert not (dest / "images/train/00002.jpg").exists() and not (dest / "labels/train/00002.txt").exists()
    assert cv2.imread(str(dest / "images/val/00003.png"), cv2.IMREAD_UNCHANGED).dtype == np.uint8
    where = pd.read_csv(dest / "problems.csv").groupby("reason")["where"].apply(list)
    assert where["annotation that is no whole XML file"] == ["train/00002"]
    for reason in found:
        assert reason in str(census)


def test_difficult_objects_are_kept_or_dropped(large, tmp_path):
    keep, drop = (run(large, tmp_path / n, Options(difficult=d), dota) for n, d in (("a", True), ("b", False)))
    assert keep.splits["boxes"].tolist() == [12, 12] and drop.splits["boxes"].tolist() == [9, 9]
    assert {r: n for _, (r, n, _) in drop.problems.iterrows()} == {"difficult": 6}


def test_difficult_objects_out_of_the_labels_stay_in_the_ground_truth(large, tmp_path):
    """Of whole images: found there, they are no false detections."""
    note = large / "val" / "labelTxt" / "P1.txt"
    first = note.read_text().splitlines()[2]
    note.write_text(f"{note.read_text()}{first[:-1]}{1 - int(first[-1])}\n")  # the same once more, not difficult
    found = {}
    for keep in (True, False):
        dest = tmp_path / str(keep)
        run(large, dest, Options(difficult=keep, tiling=Tiling(size=200, overlap=0)), dota)
        found[keep] = pd.read_csv(dest / "objects.csv"), {s: labels(dest, s, f"P{i}__1__0___0") for i, s in SPLITS}
    pd.testing.assert_frame_equal(*(objects for objects, _ in found.values()))
    assert found[True][0].groupby("split")["difficult"].sum().to_dict() == {"train": 3, "val": 2}
    assert {s: len(rows) for s, rows in found[True][1].items()} == {"train": 12, "val": 12}
    assert {s: len(rows) for s, rows in found[False][1].items()} == {"train": 9, "val": 10}


@pytest.mark.parametrize("rotated", [False, True])
def test_tiles_show_what_they_name(large, tmp_path, rotated):
    dest = tmp_path / "out"
    options = Options(rotated=rotated, tiling=Tiling(size=64, overlap=16, scales=(1.0, 0.5)))
    run(large, dest, options, dota)
    tiles = pd.read_csv(dest / "tiles.csv")
    image = cv2.imread(str(large / "train/images/P0.png"))
    objects = pd.read_csv(dest / "objects.csv").query("split == 'train'")
    corners = objects[list(converting.CORNERS)].to_numpy().reshape(-1, 4, 2)
    assert len(objects) == 12 and objects["difficult"].sum() == 3 and set(objects["class"]) == {"ship"}
    named = np.zeros(12)
    for _, tile in tiles.query("split == 'train'").iterrows():
        pixels = cv2.imread(str(dest / "images/train" / f"{tile.tile}.png"))
        assert pixels.shape == (tile.tile_height, tile.tile_width, 3)
        if tile.tile_width == tile.width:
            np.testing.assert_array_equal(pixels, image[tile.y : tile.y + tile.height, tile.x : tile.x + tile.width])
        else:
            assert (tile.tile_width, tile.tile_height) == (round(tile.width / 2), round(tile.height / 2))
        for _, *values in labels(dest, "train", tile.tile):
            found = np.reshape(values, (-1, 2)) * (tile.width, tile.height)
            if not rotated:
                (centre, size) = found
                found = np.array([centre - size / 2, centre + size / 2])
            found = found + (tile.x, tile.y)
            whole = [
                np.allclose(found, c if rotated else (c.min(0), c.max(0)), atol=1e-3) for c in corners
            ]  # cut ones match none
            named += whole
    assert (named > 0).all()  # the overlap is as wide as the objects
    assert set(read_by_ultralytics(dest, "train", "obb" if rotated else "detect")) == {
        f"{t}.png" for t in tiles.query("split == 'train'").tile
    }


def test_empty_tiles_are_kept_at_a_rate_in_training_only(large, tmp_path):
    corner = label_txt([(((2, 2), (9, 2), (9, 9), (2, 9)), "ship", False)])
    for split, stem in (("train", "P0"), ("val", "P1")):
        write(large / split / "labelTxt" / f"{stem}.txt", corner)
    counts = {}
    for rate in (0.0, 0.5, 1.0):
        options = Options(tiling=Tiling(size=32, overlap=8, empty=rate, format="jpg"))
        counts[rate] = run(large, tmp_path / str(rate), options, dota).splits["files"].tolist()
    assert counts[0.0][0] == 1 < counts[0.5][0] < counts[1.0][0]
    assert len({files[1] for files in counts.values()}) == 1 and counts[0.0][1] == counts[1.0][0]
    kept = {rate: set(os.listdir(tmp_path / str(rate) / "images/train")) for rate in counts}
    assert kept[0.0] < kept[0.5] < kept[1.0]


def test_empty_tiles_are_dropped_from_every_folder_that_is_trained_on(root, tmp_path):
    """DIOR trains on train and val."""
    write(root / "Annotations" / dior.FOLDERS["horizontal"] / "00003.xml", xml([("ship", 1, 1, 9, 9)]))
    options = Options(tiling=Tiling(size=32, overlap=0, empty=0.0))
    assert run(root, tmp_path / "out", options).splits["files"].tolist() == [3, 1, 4]  # of 8, 4 and 4


def test_another_conversion_is_not_mixed_in(root, large, tmp_path):
    run(root, tmp_path / "out")
    with pytest.raises(UserError, match="holds a conversion with another options; give another DEST"):
        run(root, tmp_path / "out", Options(rotated=True))
    with pytest.raises(UserError, match="with another kind, source, names"):
        run(large, tmp_path / "out", kind=dota)
    write(tmp_path / "mine" / "notes.txt", "mine")
    with pytest.raises(UserError, match="already holds 'notes.txt'"):
        run(root, tmp_path / "mine")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be a data set folder"):
        run(root, tmp_path / "file")


@pytest.mark.parametrize("inside", ["", "sub/folder"])
def test_the_source_is_never_written_to(root, inside):
    before = tree(root)
    with pytest.raises(UserError, match="lies in the source"):
        run(root, root / inside)
    assert tree(root) == before


def test_a_disk_that_is_too_small_is_told_before(root, tmp_path, monkeypatch):
    usage = SimpleNamespace(free=10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(
        UserError, match="has 10 kB free and needs about 16 kB, with 268 MB left over; give a DEST with more room"
    ):
        run(root, tmp_path / "out")
    assert not (tmp_path / "out" / "images").exists()


def test_a_disk_that_fills_up_keeps_what_is_there(large, tmp_path, monkeypatch):
    real, calls = one_image._write, []

    def full(target, *more):
        calls.append(target)
        if len(calls) > 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        real(target, *more)

    monkeypatch.setattr(one_image, "_write", full)
    with pytest.raises(UserError, match="the disk is full; the same command goes on from here"):
        run(large, tmp_path / "out", TILES, dota)
    monkeypatch.setattr(one_image, "_write", real)
    assert run(large, tmp_path / "out", TILES, dota).splits["images"].tolist() == [1, 1]


def test_nothing_that_can_be_converted(root, tmp_path):
    for image in root.glob("JPEGImages-*/*.jpg"):
        image.write_text("no image")
    with pytest.raises(UserError, match=r"none of the 4 images could be converted; see .*problems.csv"):
        run(root, tmp_path / "out")
    assert not (tmp_path / "out" / "data.yaml").exists()
    for note in (root / "Annotations" / dior.FOLDERS["horizontal"]).iterdir():
        note.rename(note.with_name(f"x{note.name}"))
    with pytest.raises(UserError, match=r"no image of .* can be converted \(.*image without annotation .*: 4"):
        run(root, tmp_path / "other")


@pytest.mark.parametrize("dtype, each", [(np.uint8, 3), (np.uint16, 14)])
def test_memory_of_images_that_are_cut_is_counted_while_they_are_held(large, tmp_path, monkeypatch, dtype, each):
    class Watched(Budget):
        def hold(self, size):
            asked.append(size)
            return super().hold(size)

    def watched(*args):
        image, seen = decode(*args), {b.left for b in budgets}
        left.extend(seen)
        return image

    asked, left, budgets, decode = [], [], [], one_image.decode
    for path in large.glob("*/images/*"):
        picture(path, 150, 100, dtype=dtype)
    monkeypatch.setattr(converting, "Budget", lambda size: budgets.append(Watched(size)) or budgets[-1])
    monkeypatch.setattr(one_image, "decode", watched)
    run(large, tmp_path / "out", TILES, kind=dota, workers=1)
    assert asked == [each * 150 * 100] * 2 and left == [converting._BYTES - each * 150 * 100] * 2
