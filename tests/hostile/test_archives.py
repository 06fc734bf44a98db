"""Zip files of data sets whose entries point out of the folder, or are links: nothing is written outside."""

import stat
import zipfile

import pytest

from ds2d2_yolo import cli, converting
from tests.datasets.downloads import dior_folder, picture, tree, write, xml, zipped

OUTWARDS = ("../{}", "../../../{}", "/{outside}/{}", "a/../../../{}", "..\\..\\{}", "C:\\{}", "./../{}")


def _add_hostile(archive, outside):
    """Put copies of what is in a zip file into it, under names that lead out of it."""
    with zipfile.ZipFile(archive) as read:
        files = {name: read.read(name) for name in read.namelist()}
    with zipfile.ZipFile(archive, "a") as more:
        for number, form in enumerate(OUTWARDS):
            for name, content in files.items():
                folder, _, file = name.rpartition("/")
                more.writestr(form.format(f"{folder}/{number}{file}", outside=str(outside)[1:]), content)
        link = zipfile.ZipInfo("JPEGImages-trainval/link.jpg")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        more.writestr(link, str(outside / "secret.jpg"))


@pytest.fixture
def world(tmp_path):
    """A folder with something in it that is to stay as it is."""
    (tmp_path / "outside").mkdir()
    picture(tmp_path / "outside" / "secret.jpg", seed=99)
    return tmp_path


def _dior(root):
    stems = [f"{number}0000{i}" for number in range(len(OUTWARDS)) for i in (1, 2)]
    folder = dior_folder(root)
    write(folder / "ImageSets/Main/train.txt", "\n".join(["00001", "00002", "link", "../../outside/x", *stems]) + "\n")
    return zipped(folder)


def _voc(root):
    for i in range(3):
        picture(root / f"images/{i}.jpg", seed=i)
        write(root / f"annotations/{i}.xml", xml([("ship", 1, 2, 11, 22)]))
    return zipped(root)


@pytest.mark.parametrize("kind, make", [("dior", _dior), ("voc", _voc)])
def test_nothing_is_written_outside(kind, make, world):
    archive = make(world / "download" / kind)
    _add_hostile(archive, world / "outside")
    before = tree(world)
    assert cli.run(converting.main, [kind, str(archive), str(world / "dest" / "set"), "workers=1"]) in (0, 2)
    after = tree(world)
    written = {path for path in after if path not in before}
    assert all(path.startswith("dest/set/") for path in written)
    assert {path: after[path] for path in before} == before
    images = [path for path in (world / "dest" / "set").rglob("*.jpg") if "images" in path.parts]
    assert len(images) >= 3  # what is good in it is converted
    secret = (world / "outside" / "secret.jpg").read_bytes()
    assert not any(path.is_symlink() or path.read_bytes() == secret for path in images)
