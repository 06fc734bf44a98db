import errno
from pathlib import Path

import cv2
import pytest
from matplotlib.figure import Figure

from ds2d2_yolo.errors import UserError
from ds2d2_yolo.report.pictures import write_picture


def test_the_folder_is_made(tmp_path):
    path = write_picture(Figure(figsize=(2, 1)), tmp_path / "new/folder/a.png")
    assert cv2.imread(str(path)).shape == (100, 200, 3)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_place_that_takes_no_files_is_named(tmp_path, monkeypatch, number):
    def refused(*_):
        raise OSError(number, "not today")

    monkeypatch.setattr(Path, "write_bytes", refused)
    with pytest.raises(UserError, match=r"a.png' \(not today\); make room there, or name another folder: save_dir="):
        write_picture(Figure(), tmp_path / "a.png")
