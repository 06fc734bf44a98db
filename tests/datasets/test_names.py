"""Names in every spelling: accents in two forms, bytes that are no text, what a picture takes for a formula."""

import json
import os
import unicodedata

import cv2
import numpy as np
import pytest

from ds2d2_yolo.datasets import coco_json, dior, dota, voc
from ds2d2_yolo.datasets.census import Census
from ds2d2_yolo.datasets.convert import convert
from ds2d2_yolo.datasets.objects import Plan
from ds2d2_yolo.datasets.one_image import Options
from ds2d2_yolo.datasets.source import Source
from ds2d2_yolo.datasets.tile_tables import read_tiled, tile_files
from ds2d2_yolo.datasets.tiles import Tiling
from tests.datasets.downloads import coco, label_txt, write, xml, zipped
from tests.datasets.test_convert import read_by_ultralytics

SPLITS = ("train", "val")
SHIP = xml([("ship", 1, 2, 11, 22)])
SQUARE = label_txt([([(5, 5), (20, 5), (20, 20), (5, 20)], "ship", 0)])
READERS = {
    "voc": (
        voc,
        {"ImageSets/Main/train.txt": "Köln/{0}\n", "JPEGImages/Köln/{1}.png": "", "Annotations/{0}.xml": SHIP},
    ),
    "dior": (
        dior,
        {
            "ImageSets/Main/train.txt": "{0}\n",
            "JPEGImages-trainval/{1}.png": "",
            "Annotations/Horizontal Bounding Boxes/{0}.xml": SHIP,
        },
    ),
    "dota": (dota, {"train/images/{1}.png": "", "train/labelTxt/{0}.txt": SQUARE}),
    "coco": (coco_json, {"train.json": coco([(1, "Köln/{0}.png")], [(1, 7, [1, 1, 5, 5])]), "Köln/{1}.png": ""}),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
@pytest.mark.parametrize("kind", READERS)
def test_letters_with_accents_are_the_same_in_both_forms(tmp_path, kind, forms, packed):
    """Lists and annotations of one program, images of another."""
    reader, files = READERS[kind]
    names = [unicodedata.normalize(form, "Zürich") for form in forms]
    for path, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        form = forms["{1}" in path]
        path = unicodedata.normalize(form, path.replace("{0}", names[0]).replace("{1}", names[1]))
        write(tmp_path / "in" / path, text.replace("{0}", names[0]))
    if packed:
        zipped(tmp_path / "in")
    result = reader.plan(Source(tmp_path))
    (job,) = result.jobs
    assert job.stem == "Zürich" and len(job.read()) == 1 and job.image.read() == b""
    assert not any("missing" in reason or "without" in reason for reason, where in result.problems.items() if where)


@pytest.fixture
def latin(tmp_path, monkeypatch):
    """A VOC folder whose names are Latin-1, as an old archive leaves them; OpenCV dies of them."""
    imread = cv2.imread
    monkeypatch.setattr(cv2, "imread", lambda path, *more: imread(path.encode().decode(), *more))
    folder = tmp_path / os.fsdecode(b"K\xf6ln")
    (folder / "ImageSets").mkdir(parents=True)
    (folder / "ImageSets/val.txt").write_bytes(b"Z\xfcrich\n")
    (folder / "ImageSets/train.txt").write_bytes(b"G\xe4u\r\nB\xfchl.png\n")
    for i, name in enumerate([b"Z\xfcrich.png", b"G\xe4u.tif", b"B\xfchl.png"]):
        pixels = np.random.default_rng(i).integers(0, 256, (60, 100, 3)).astype(np.uint16 if i == 2 else np.uint8)
        path = folder / os.fsdecode(name)
        path.write_bytes(cv2.imencode(path.suffix, pixels)[1].tobytes())
        write(path.with_suffix(".xml"), SHIP)
    return folder


@pytest.mark.parametrize("tiling", [None, Tiling(size=64, overlap=16)])
def test_names_that_are_no_text_become_some(tmp_path, latin, tiling):
    source, dest = Source(latin), tmp_path / "out"
    census = convert(voc.plan(source), dest, Options(tiling=tiling), source.root, 1)
    assert census.splits["images"].to_dict() == {"train": 2, "val": 1}
    written = [path.relative_to(dest).as_posix() for path in dest.rglob("*")]
    assert all(path.isascii() for path in written) and ("images/val/Z%FCrich.png" in written) == (not tiling)
    boxes = {split: [len(one["cls"]) for one in read_by_ultralytics(dest, split).values()] for split in SPLITS}
    assert {split: sum(numbers) for split, numbers in boxes.items()} == {"train": 2, "val": 1}
    if tiling:
        tiled = read_tiled(dest / "data.yaml", "train")
        assert set(tiled.tiles["image"]) == set(tiled.objects["image"]) == {"B%FChl", "G%E4u"}
        image, files = cv2.imdecode(np.fromfile(latin / os.fsdecode(b"G\xe4u.tif"), np.uint8), 1), tile_files(tiled)
        np.testing.assert_array_equal(cv2.imread(files[-1]), image[-64:, -64:])


def test_a_class_that_looks_like_a_formula_has_its_picture(tmp_path):
    names = ["$\\frac{$", "a $^$ b", "$", "plain"]
    counts = [[kind, 0, kind + 1] for kind in range(len(names))]
    record = {"split": "train", "image": "a", "images": 1, "boxes": 1, "counts": counts, "problems": {}}
    Census(Plan("voc", names, [], {}), [record]).draw(tmp_path / "census.png")
    assert (tmp_path / "census.png").stat().st_size > 10_000


def test_the_data_file_does_not_wait_for_the_picture(tmp_path, latin, monkeypatch):
    monkeypatch.setattr(Census, "draw", lambda *_: 1 / 0)
    source = Source(latin)
    with pytest.raises(ZeroDivisionError):
        convert(voc.plan(source), tmp_path / "out", Options(), source.root, 1)
    assert (tmp_path / "out/data.yaml").is_file()
