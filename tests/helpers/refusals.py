"""What wrong settings are told."""

import pytest

from ds2d2_yolo.engine import settings
from ds2d2_yolo.errors import UserError


def refusal(**overrides):
    with pytest.raises(UserError) as caught:
        settings.check(overrides)
    return str(caught.value)


def error_of(capsys):
    """The single line on stderr."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("ds2d2: ")
    return lines[0]
