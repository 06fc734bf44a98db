"""Images that are replaced in the source after they were converted: the same command makes them again."""

import json
import os
import shutil

import cv2
import numpy as np
import pytest

from ds2d2_yolo.datasets import convert as converting
from ds2d2_yolo.datasets import dior, one_image
from ds2d2_yolo.datasets.convert import convert
from ds2d2_yolo.datasets.journal import JOURNAL
from ds2d2_yolo.datasets.one_image import Options
from ds2d2_yolo.datasets.source import Source
from ds2d2_yolo.datasets.tiles import Tiling
from ds2d2_yolo.errors import UserError
from tests.datasets.downloads import dior_folder, picture, tree, zipped

TILES = Options(tiling=Tiling(32, 0))


@pytest.fixture
def root(tmp_path):
    return dior_folder(tmp_path / "in")


@pytest.fixture
def seen(monkeypatch):
    """The images that are made, in their order."""
    made = []
    monkeypatch.setattr(
        converting, "convert_one", lambda job, *more: made.append(job.stem) or one_image.convert_one(job, *more)
    )
    return made


def run(root, dest, options=TILES):
    source = Source(root)
    return convert(dior.plan(source), dest, options, source.root, 1)


def made(dest):
    """Names and content of what a conversion wrote, tables among them, but not its journal."""
    return {name: content for name, content in tree(dest).items() if name != JOURNAL}


def image_of(root):
    return root / "JPEGImages-trainval/00001.jpg"


@pytest.mark.parametrize("size", [(64, 48), (40, 30), (100, 48)])
def test_tiles_of_an_image_that_was_replaced_are_made_again(root, tmp_path, seen, capsys, size):
    run(root, tmp_path / "out")
    picture(image_of(root), *size, seed=99)
    seen.clear()
    run(root, tmp_path / "out")
    assert seen == ["00001"] and "1 x image that is another in the source now (made again)" in capsys.readouterr().out
    run(root, tmp_path / "new")
    assert made(tmp_path / "out") == made(tmp_path / "new")  # those of the larger one are gone
    seen.clear()
    run(root, tmp_path / "out")
    assert seen == [] and "all images are in" in capsys.readouterr().out


@pytest.mark.parametrize("options", [TILES, Options()])
def test_out_of_a_zip_file(root, tmp_path, seen, options):
    """The zip file is another one where an image in it is; the others in it stay, and their times say nothing."""
    packed = tmp_path / "packed"
    for new in (False, True):
        shutil.rmtree(packed, ignore_errors=True)
        shutil.copytree(root, packed)
        if new:
            old = image_of(packed).stat()
            picture(image_of(packed), seed=99)
            os.utime(image_of(packed), ns=(old.st_atime_ns, old.st_mtime_ns))
        for folder in ("JPEGImages-trainval", "JPEGImages-test"):
            zipped(packed / folder)
        seen.clear()
        run(packed, tmp_path / "out", options)
        assert seen == (["00001"] if new else ["00001", "00002", "00003", "11726"])
    os.utime(packed / "JPEGImages-trainval.zip", (0, 0))
    seen.clear()
    run(packed, tmp_path / "out", options)
    assert seen == []
    run(packed, tmp_path / "new", options)
    assert made(tmp_path / "out") == made(tmp_path / "new")


def test_pixels_that_were_written_anew(root, tmp_path):
    """Of 16 bits they become a PNG file, of 8 bits a link: the file of the other kind does not stay."""
    path = image_of(root).with_suffix(".tif")
    image_of(root).unlink()
    picture(path, dtype=np.uint16)
    run(root, tmp_path / "out", Options())
    written = tmp_path / "out/images/train/00001.png"
    before = written.read_bytes()
    picture(path, dtype=np.uint16, seed=7)
    run(root, tmp_path / "out", Options())
    assert written.read_bytes() != before
    pixels = picture(path)
    run(root, tmp_path / "out", Options())
    assert sorted(p.name for p in (tmp_path / "out/images/train").glob("00001.*")) == ["00001.tif"]
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "out/images/train/00001.tif")), pixels)


def test_labels_of_a_link_follow_the_size_of_its_image(root, tmp_path):
    """What is linked to is another by itself; shares of its size are not."""
    run(root, tmp_path / "out", Options())
    picture(image_of(root), 128, 96)
    run(root, tmp_path / "out", Options())
    run(root, tmp_path / "new", Options())
    assert made(tmp_path / "out") == made(tmp_path / "new")


def test_copies_where_there_are_no_links(root, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    for kind in ("symlink", "link"):
        monkeypatch.setattr(os, kind, refuse)
    run(root, tmp_path / "out", Options())
    picture(image_of(root), seed=99)
    run(root, tmp_path / "out", Options())
    assert (tmp_path / "out/images/train/00001.jpg").read_bytes() == image_of(root).read_bytes()


def test_a_set_that_was_only_touched_is_made_again_and_the_same(root, tmp_path):
    run(root, tmp_path / "out")
    before = made(tmp_path / "out")
    for path in root.rglob("*.*"):
        os.utime(path, (1, 1))
    run(root, tmp_path / "out")
    assert made(tmp_path / "out") == before


def test_a_journal_of_an_earlier_version_goes_on(root, tmp_path, seen):
    """It does not say of which files its images are made: what they are now counts from now on."""
    journal = tmp_path / "out" / JOURNAL
    run(root, tmp_path / "out")
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert all(line.pop("stamp") for line in lines[1:])
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    seen.clear()
    run(root, tmp_path / "out")
    assert seen == []
    picture(image_of(root), seed=99)
    run(root, tmp_path / "out")
    assert seen == ["00001"]


def test_it_goes_on_where_an_interruption_left_what_was_replaced(root, tmp_path, monkeypatch):
    """The old tiles are gone by then, and the journal does not name their image any more."""
    run(root, tmp_path / "out")
    for name in ("00001", "00002"):
        picture(root / f"JPEGImages-trainval/{name}.jpg", 40, 30, seed=99)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(converting, "convert_one", interrupted)
    with pytest.raises(KeyboardInterrupt, match="the same command goes on from here"):
        run(root, tmp_path / "out")
    monkeypatch.undo()
    run(root, tmp_path / "out")
    run(root, tmp_path / "new")
    assert made(tmp_path / "out") == made(tmp_path / "new")


def test_nothing_is_removed_where_the_disk_is_too_small(root, tmp_path, monkeypatch):
    run(root, tmp_path / "out")
    before = tree(tmp_path / "out")
    picture(image_of(root), seed=99)
    monkeypatch.setattr(converting, "_SPARE", 1e18)
    with pytest.raises(UserError, match="give a DEST with more room"):
        run(root, tmp_path / "out")
    assert tree(tmp_path / "out") == before
