import errno
from pathlib import Path

import cv2
import pytest
from matplotlib.figure import Figure

from ds2d2_yolo.errors import UserError
from ds2d2_yolo.report.files import replace
from ds2d2_yolo.report.pictures import place_for, write_picture


def test_the_folder_is_made(tmp_path):
    path = write_picture(Figure(figsize=(2, 1)), tmp_path / "new/folder/a.png")
    assert cv2.imread(str(path)).shape == (100, 200, 3)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_place_that_takes_no_files_is_named(tmp_path, monkeypatch, number):
    def refused(*_):
        raise OSError(number, "not today")

    monkeypatch.setattr("ds2d2_yolo.report.files.open", refused, raising=False)
    with pytest.raises(UserError, match=r"a.png' \(not today\); make room there, or name another folder: save_dir="):
        write_picture(Figure(), tmp_path / "a.png")


def test_what_was_there_stays_until_the_picture_is_whole(tmp_path, monkeypatch):
    path = write_picture(Figure(figsize=(2, 1)), tmp_path / "a.png")
    before = path.read_bytes()

    def half(file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("ds2d2_yolo.report.pictures.replace", lambda path, _: replace(path, half))
    with pytest.raises(UserError, match=r"cannot write the picture .*a.png' \(full\)"):
        write_picture(Figure(figsize=(3, 1)), path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_picture_takes_the_place_of_one_of_the_same_thing_alone(tmp_path):
    path = tmp_path / "a.png"
    assert place_for(path, "x/a.jpg") == path
    write_picture(Figure(figsize=(2, 1)), path, of="x/a.jpg")
    assert place_for(path, Path("x/a.jpg").absolute()) == path
    assert place_for(path, "y/a.jpg") == tmp_path / "a-2.png"
    write_picture(Figure(figsize=(2, 1)), tmp_path / "a-2.png", of="y/a.jpg")
    assert place_for(path, "y/a.jpg") == tmp_path / "a-2.png"
    write_picture(Figure(figsize=(2, 1)), path)  # of nothing that is known
    assert place_for(path, "x/a.jpg") == tmp_path / "a-3.png"
    path.write_bytes(b"no picture")
    assert place_for(path, "x/a.jpg") == tmp_path / "a-3.png"
    odd = tmp_path / "\udcff.png"
    write_picture(Figure(figsize=(2, 1)), odd, of="\udcff.jpg")
    assert place_for(odd, "\udcff.jpg") == odd


def test_names_as_long_as_a_folder_takes(tmp_path):
    path = tmp_path / f"{'n' * 251}.png"
    assert write_picture(Figure(figsize=(2, 1)), path).stat().st_size > 100
