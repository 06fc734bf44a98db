"""Submission files as DOTA's evaluation server takes them."""

import pandas as pd
import pytest

from ds2d2_yolo.datasets.merge import COLUMNS
from ds2d2_yolo.datasets.submit import check_submission, write_submission
from ds2d2_yolo.datasets.tiles import rectangles
from ds2d2_yolo.errors import UserError


def merged_table(*rows):
    return pd.DataFrame([[i, k, s, *rectangles(box)[0].ravel()] for i, k, s, *box in rows], columns=COLUMNS)


def test_scores_are_written_in_full_and_old_files_go(tmp_path):
    folder = tmp_path / "Task2"
    write_submission(merged_table(("P1", 0, 0.1 + 0.2, 1, 2, 3, 4)), {0: "a", 1: "b"}, folder, rotated=False)
    assert float((folder / "Task2_a.txt").read_text().split()[1]) == 0.1 + 0.2
    write_submission(merged_table(("P1", 0, 0.5, 1, 2, 3, 4)), {0: "a"}, folder, rotated=False)
    assert [f.name for f in folder.iterdir()] == ["Task2_a.txt"]
    with pytest.raises(UserError, match="'P 1' has a space"):
        write_submission(merged_table(("P 1", 0, 0.5, 1, 2, 3, 4)), {0: "a"}, folder, rotated=False)


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("Task2_a.txt", "P1 0.5 1 2 3\n", "line 1: 5 fields where 6 belong"),
        ("Task2_a.txt", "P1 0.5 1 2 3 4\n\n", "line 2: 0 fields"),
        ("Task2_a.txt", "P1 0.5 1 2 x 4\n", "no number"),
        ("Task2_a.txt", "P1 0.5 1 2 inf 4\n", "no finite number"),
        ("Task2_a.txt", "P1 1.5 1 2 3 4\n", "score 1.5"),
        ("Task2_a.txt", "P1 nan 1 2 3 4\n", "score nan"),
        ("Task2_a.txt", "P7 0.5 1 2 3 4\n", "image 'P7' is not known"),
        ("Task2_a.txt", "P1 0.5 3 2 3 4\n", "without width"),
        ("Task1_a.txt", "P1 0.5 1 2 3 4\n", "mixes files of both tasks"),
        ("Task2_c.txt", "", "has a file of class 'c'"),
        ("a.txt", "", "named neither"),
    ],
)
def test_a_submission_that_the_server_would_refuse(tmp_path, name, text, said):
    write_submission(merged_table(("P1", 0, 0.5, 1, 2, 3, 4)), {0: "a", 1: "b"}, tmp_path / "t", rotated=False)
    assert check_submission(tmp_path / "t", ["P1"], {0: "a", 1: "b"}) == {"a": 1, "b": 0}
    (tmp_path / "t" / name).write_text(text)
    with pytest.raises(UserError, match=said):
        check_submission(tmp_path / "t", ["P1"], {0: "a", 1: "b"})


def test_a_missing_class_or_folder_is_said(tmp_path):
    write_submission(merged_table(), {0: "a"}, tmp_path / "t", rotated=True)
    with pytest.raises(UserError, match="lacks a file of class 'b'"):
        check_submission(tmp_path / "t", [], {0: "a", 1: "b"})
    with pytest.raises(UserError, match="holds no files"):
        check_submission(tmp_path / "none", [])
