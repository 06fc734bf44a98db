"""The whole table of bad input, through every command: one line, exit code 2, and nothing that looks like a result."""

import pytest

from ds2d2_yolo import cli, converting
from tests.helpers.bad_cases import CASES
from tests.helpers.bad_input import GOOD
from tests.helpers.training import one_error

pytestmark = pytest.mark.slow

UNSEEN = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)  # Python prints the others


def _tree(*folders):
    """Every file and folder but the cache of labels, with its size."""
    paths = [path for folder in folders for path in folder.rglob("*") if path.suffix != ".cache"]
    return {path: path.lstat().st_size for path in paths if not path.is_dir()} | {
        path: None for path in paths if path.is_dir()
    }


def _run(command, argv):
    if command == "datasets":
        return cli.run(converting.main, argv)
    return {"train": cli.train, "export": cli.export}.get(command, cli.val)(argv)


def test_the_table_is_whole():
    assert len(CASES) >= 60
    assert len({str(case) for case in CASES}) == len(CASES)
    assert {case.command for case in CASES} == set(GOOD)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bad_input(case, tmp_path, scenes, pictures, small, teacher, monkeypatch, capsys, recwarn):
    monkeypatch.chdir(tmp_path)
    if case.files:
        case.files(tmp_path, scenes)
    places = {"scenes": scenes, "small": small, "teacher": teacher, "image": pictures[0]}
    folders = (tmp_path, scenes.parent, teacher.parent)
    before = _tree(*folders)
    capsys.readouterr()
    assert _run(case.command, case.argv({**places, "tmp": tmp_path})) == 2
    line = one_error(capsys)
    assert case.said in line and "Traceback" not in line
    assert not [str(w.message) for w in recwarn if not issubclass(w.category, UNSEEN)]
    assert _tree(*folders) == before
