"""`python -m ds2d2_yolo.datasets`: every format from the command line, and what it says to a slip."""

import json
import os
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image
from ultralytics.utils import YAML

from ds2d2_yolo import converting
from ds2d2_yolo.cli import run
from ds2d2_yolo.datasets import dior, dota
from ds2d2_yolo.paths import DATA
from tests.datasets.downloads import dior_folder, label_txt, picture, tree, write, xml


@pytest.fixture
def source(tmp_path):
    return dior_folder(tmp_path / "DIOR as downloaded")


@pytest.fixture
def dota_source(tmp_path):
    for split in ("train", "val"):
        picture(tmp_path / "d" / split / "images" / f"{split}1.png", 120, 90)
        row = ((4, 4), (30, 4), (30, 30), (4, 30)), "plane", False
        write(tmp_path / "d" / split / "labelTxt" / f"{split}1.txt", label_txt([row]))
    return tmp_path / "d"


@pytest.fixture
def call(capsys):
    """Runs the command; returns its exit code and what it printed on both streams."""

    def command(*argv):
        code = run(converting.main, list(map(str, argv)))
        out, err = capsys.readouterr()
        return code, out, err

    return command


def test_as_a_module(source, tmp_path):
    """The whole program, from a path with spaces."""
    command = [sys.executable, "-m", "ds2d2_yolo.datasets", "dior", str(source), str(tmp_path / "o u t")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"train on it with data={tmp_path / 'o u t' / 'data.yaml'}" in done.stdout
    assert "Traceback" not in done.stdout and "ship" in done.stdout


def test_help(call):
    for argv in ((), ("--help",), ("dior", "-h")):
        code, out, err = call(*argv)
        assert (code, err) == (0, "") and "dior SOURCE" in out


@pytest.mark.parametrize("options", [(), ("boxes=rotated", "difficult=drop", "workers=1")])
def test_dior_goes_where_its_yaml_looks(call, source, tmp_path, monkeypatch, options):
    monkeypatch.setattr("ultralytics.utils.DATASETS_DIR", tmp_path / "sets")
    code, out, _ = call("dior", source, *options)
    assert code == 0 and ("yolo obb train" if options else "train on it with data=") in out
    [dest] = (tmp_path / "sets").iterdir()
    shipped = YAML.load(DATA / "dior.yaml")
    assert dest.name == shipped["path"] + ("-rotated" if options else "")
    written = YAML.load(dest / "data.yaml")
    assert {key: shipped[key] for key in written} == written
    assert list(shipped["names"].values()) == dior.NAMES


def test_dota_with_every_option(call, dota_source, tmp_path, monkeypatch):
    monkeypatch.setattr("ultralytics.utils.DATASETS_DIR", tmp_path / "sets")
    assert call("dota", dota_source, "size=64", "overlap=16")[0] == 0
    shipped, written = YAML.load(DATA / "dota.yaml"), YAML.load(tmp_path / "sets" / "DOTA" / "data.yaml")
    assert {key: shipped[key] for key in written} == written
    assert list(shipped["names"].values()) == dota.NAMES[:15]
    more = ["version=1.5", "size=64", "overlap=8", "scales=0.5,1.0", "keep=0.5", "empty=0.5", "format=jpg"]
    assert call("dota", dota_source, *more, "boxes=rotated", "difficult=drop")[0] == 0
    dest = tmp_path / "sets" / "DOTA-v1.5-rotated"
    assert len(YAML.load(dest / "data.yaml")["names"]) == 16
    assert {p.suffix for p in (dest / "images" / "val").iterdir()} == {".jpg"}
    assert call("dota", dota_source, tmp_path / "whole", "tiles=False")[0] == 0
    assert [p.name for p in (tmp_path / "whole/images/train").iterdir()] == ["train1.png"]
    assert not (tmp_path / "whole" / "tiles.csv").exists()


def test_voc_and_coco_and_back(call, tmp_path):
    for name, kind in (("a", "ship"), ("b", "car")):
        picture(tmp_path / "voc" / "JPEGImages" / f"{name}.jpg")
        write(tmp_path / "voc" / "Annotations" / f"{name}.xml", xml([(kind, 1, 2, 11, 22)]))
    assert call("voc", tmp_path / "voc", tmp_path / "yolo", "names=[ship, car]", "origin=1")[0] == 0
    assert YAML.load(tmp_path / "yolo/data.yaml")["names"] == {0: "ship", 1: "car"}
    assert (tmp_path / "yolo/labels/train/b.txt").read_text().startswith("1 ")
    code, out, _ = call("tococo", tmp_path / "yolo/data.yaml", tmp_path / "new" / "train.json", "split=train")
    assert (code, out.strip().splitlines()[-1]) == (0, str(tmp_path / "new" / "train.json"))
    written = json.loads((tmp_path / "new" / "train.json").read_text())
    assert [a["bbox"] for a in written["annotations"]] == [pytest.approx([0, 1, 11, 21], abs=1e-4)] * 2
    (tmp_path / "yolo" / "images" / "train").rename(tmp_path / "new" / "images")
    assert call("coco", tmp_path / "new", tmp_path / "again")[0] == 0
    for name in ("a", "b"):
        before, after = ((tmp_path / d / "labels/train" / f"{name}.txt").read_text() for d in ("yolo", "again"))
        assert list(map(float, before.split())) == pytest.approx(list(map(float, after.split())), abs=1e-5)


def test_an_image_left_out_for_another_folders_is_named(call, tmp_path):
    for name in ("optical/1.png", "sar/1.jp2"):
        picture(tmp_path / "in" / name)
        write((tmp_path / "in" / name).with_suffix(".xml"), xml([("ship", 1, 2, 11, 22)]))
    said = "left out for an image of its name in a more usual format, in another folder (rename one)"
    assert call("voc", tmp_path / "in", tmp_path / "voc")[0] == 0
    assert f"{said},sar/1.jp2" in (tmp_path / "voc/problems.csv").read_text().replace('"', "")
    images = [
        {"id": k, "file_name": name, "width": 64, "height": 48} for k, name in enumerate(("optical/1.png", "sar/1.jp2"))
    ]
    boxes = [{"id": k, "image_id": k, "category_id": 0, "bbox": [1, 2, 10, 20]} for k in (0, 1)]
    listed = {"images": images, "annotations": boxes, "categories": [{"id": 0, "name": "ship"}]}
    write(tmp_path / "in/train.json", json.dumps(listed))
    assert call("coco", tmp_path / "in", tmp_path / "coco")[0] == 0  # which takes what is listed
    assert len(list((tmp_path / "coco/images/train").iterdir())) == 2
    assert said not in (tmp_path / "coco/problems.csv").read_text().replace('"', "")


def test_other_formats_can_be_tiled(call, source, tmp_path):
    assert call("dior", source, tmp_path / "out", "tiles=True", "size=32", "overlap=8")[0] == 0
    assert len(list((tmp_path / "out/images/train").iterdir())) == 12


@pytest.mark.parametrize(
    "argv, says",
    [
        (["dior"], "dior needs a source"),
        (["dior", "a", "b", "c"], "dior takes SOURCE and DEST, not 'c' besides"),
        (["dior", "nowhere"], "source 'nowhere' does not exist"),
        (["dier", "."], "unknown format 'dier'; it is one of dior"),
        (["dior", ".", "boxs=rotated"], "unknown setting 'boxs' of dior; did you mean boxes?"),
        (["dior", ".", "version=1.5"], "unknown setting 'version' of dior"),
        (["dior", ".", "boxes=round"], "boxes=round is none of horizontal, rotated"),
        (["dior", ".", "difficult=maybe"], "difficult=maybe is none of keep, drop"),
        (["dior", ".", "size=512"], "size= is for tiles; add tiles=True"),
        (["dior", ".", "workers=-1"], "workers= must be 0 or more"),
        (["dior", ".", "workers=many"], "workers=many is not understood"),
        (["dior", ".", "workers=1.5"], "workers=1.5 is not understood"),
        (["dior", ".", "boxes="], "'boxes=' is not of the form key=value"),
        (["dota", ".", "version=x"], "version=x is not understood"),
        (["dota", ".", "version=3"], "version=3.0 of DOTA is none of 1.0, 1.5, 2.0"),
        (["dota", ".", "overlap=1024"], "overlap=1024 must be"),
        (["dota", ".", "scales=1,x"], "scales=1,x is not understood"),
        (["dota", ".", "tiles=perhaps"], "tiles=perhaps is not understood"),
        (["voc", ".", "origin=2"], "origin= 0 or 1"),
        (["merge"], "merge needs a data set"),
        (["tococo"], "usage: python -m ds2d2_yolo.datasets tococo"),
        (["tococo", "x.yaml", "splt=val"], "usage: python -m ds2d2_yolo.datasets tococo"),
    ],
)
def test_slips_are_one_line(call, tmp_path, monkeypatch, argv, says):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "readme.txt", "")
    before = tree(tmp_path)
    code, _, err = call(*argv)
    assert code == 2
    assert err.startswith("ds2d2: error: ") and says in err and len(err.splitlines()) == 1
    assert tree(tmp_path) == before


def test_what_annotations_are_read_as_is_part_of_a_conversion(call, dota_source, tmp_path):
    """Another origin= or split= would leave labels as they are, or mix both."""
    picture(tmp_path / "v/images/a.png")
    write(tmp_path / "v/Annotations/a.xml", xml([("ship", 1, 2, 11, 22)]))
    for source, argument in (("voc", "origin=1"), ("dota", "split=val")):
        folder, dest = tmp_path / "v" if source == "voc" else dota_source / "train", tmp_path / source
        assert call(source, folder, dest)[0] == 0
        assert "all images are in" in call(source, folder, dest)[1]
        code, _, err = call(source, folder, dest, argument)
        assert code == 2 and f"a conversion with another {argument.split('=')[0]}" in err


def test_file_names_that_are_no_text(call, tmp_path):
    """Of an archive in another encoding, unpacked on Linux."""
    picture(tmp_path / "v/images/a.png")
    write(tmp_path / "v/Annotations/a.xml", xml([("ship", 1, 2, 11, 22)]))
    odd = os.fsdecode(b"\xb7\xc9")
    shutil.copy(tmp_path / "v/images/a.png", tmp_path / "v/images" / f"{odd}.png")
    shutil.copy(tmp_path / "v/Annotations/a.xml", tmp_path / "v/Annotations" / f"{odd}2.xml")
    code, out, err = call("voc", tmp_path / "v", tmp_path / "out")
    assert (code, err) == (0, "") and "\\udcb7\\udcc9.png" in out
    assert "\\udcb7\\udcc9" in (tmp_path / "out/problems.csv").read_text()


def test_paths_from_home(call, source, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert call("dior", f"~/{source.name}", "~/out")[0] == 0
    assert call("tococo", "~/out/data.yaml", "~/o.json", "split=test")[0] == 0
    assert (tmp_path / "o.json").exists()


def test_slips_in_settings(call, dota_source, tmp_path):
    """Each names the thing and the way out."""
    said = {
        (
            "dota",
            dota_source,
            tmp_path / "o",
            "--workers",
            "2",
        ): "'--workers' is not of the form key=value, as in workers=",
        ("dota", dota_source, tmp_path / "o", "x"): "takes SOURCE and DEST, not 'x' besides",
        ("dota", dota_source, tmp_path / "o", "names=a"): "unknown setting 'names' of dota; there are boxes,",
        ("dota", dota_source, tmp_path / "o", "scales=abc"): "the default is 1.0",
        ("merge", "d.yaml", "target=x"): "unknown setting 'target' of merge",
        ("merge", "d.yaml", "model=a.pt", "conf=high"): "conf=high is not understood; it takes a number",
        ("merge", "d.yaml", "model=a.pt", "iou_rotated=x"): "iou_rotated=x is not understood; the default is 0.1",
        ("merge", "d.yaml", "model=a.pt", "rotated=perhaps"): "it takes True or False",
    }
    for argv, line in said.items():
        code, _, err = call(*argv)
        assert code == 2 and line in err and err.count("\n") == 1, err
    assert not (tmp_path / "o").exists()


def test_the_table_says_where_data_yaml_lacks_images(call, source, dota_source, tmp_path):
    for image in (source / "JPEGImages-test").iterdir():
        image.unlink()
    _, out, _ = call("dior", source, tmp_path / "a")
    assert "1 x data.yaml names no images, as none were converted: val" in out
    data = YAML.load(tmp_path / "a/data.yaml")
    assert data["train"] == ["images/train", "images/val"] and "val" not in data
    assert out.startswith(f"listing {source} ...\n")
    assert f"not to be trained on as it is: add val to {tmp_path / 'a/data.yaml'}" in out and "train on it" not in out
    for file in (dota_source / "val").rglob("*.*"):
        file.unlink()
    _, out, _ = call("dota", dota_source, tmp_path / "b")
    assert "1 x data.yaml validates on training images, as there are no others: val" in out
    assert YAML.load(tmp_path / "b/data.yaml")["val"] == "images/train"


@pytest.mark.parametrize("tiles", [True, False])
def test_images_that_are_not_rgb_are_in_the_table(call, dota_source, tmp_path, tiles):
    picture(dota_source / "train/images/train1.png", 120, 90, dtype=np.uint16)
    for channels, mode in ((1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")):
        noise = np.random.default_rng(0).integers(0, 255, (90, 120, channels), np.uint8)
        Image.fromarray(noise.squeeze()).save(dota_source / f"train/images/{mode}.png")
        shutil.copy(dota_source / "train/labelTxt/train1.txt", dota_source / f"train/labelTxt/{mode}.txt")
    _, out, _ = call("dota", dota_source, tmp_path / "o", f"tiles={tiles}")
    lines = sorted(line for line in out.splitlines() if "image of mode" in line)
    kept = [f"1 x image of mode {mode} (kept, and read as RGB): train/{mode}" for mode in ("L", "LA", "RGBA")]
    assert set(lines) == {*kept, "1 x image of mode RGB;16 (written as 8-bit RGB): train/train1"}
    written = list((tmp_path / "o/images/train").iterdir())
    assert len(written) == 5 and all(cv2.imread(str(f)).shape == (90, 120, 3) for f in written)


def test_a_folder_with_a_dot_keeps_its_whole_name(call, tmp_path, monkeypatch):
    """scenes_v1.1 and scenes_v1.2 are two data sets."""
    monkeypatch.setattr("ultralytics.utils.DATASETS_DIR", tmp_path / "sets")
    for version in ("1.1", "1.2"):
        folder = tmp_path / f"scenes_v{version}"
        picture(folder / "images" / "a.png", 40, 30)
        write(folder / "a.xml", xml([("ship", 3, 4, 20, 25)], size=(40, 30)))
        code, out, err = call("voc", folder)
        assert (code, err) == (0, "") and f"scenes_v{version}-yolo" in out
    assert {p.name for p in (tmp_path / "sets").iterdir()} == {"scenes_v1.1-yolo", "scenes_v1.2-yolo"}
