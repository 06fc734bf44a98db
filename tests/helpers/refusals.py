"""What wrong settings are told."""

import pytest

from ds2d2_yolo.engine import settings
from ds2d2_yolo.errors import UserError


def refusal(**overrides):
    with pytest.raises(UserError) as caught:
        settings.check(overrides)
    return str(caught.value)
