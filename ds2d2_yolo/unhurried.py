"""Ultralytics' NMS without its time limit: what is found must not depend on how busy a machine is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from unittest.mock import patch

from ultralytics.utils import nms


@contextmanager
def whole_nms() -> Iterator[None]:
    """Let NMS look at every image of a batch: after 2 s and 0.05 s an image it would leave the rest without boxes."""
    with patch.object(nms, "non_max_suppression", partial(nms.non_max_suppression, max_time_img=math.inf)):
        yield
