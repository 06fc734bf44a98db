"""How long an example of hypothesis may take does not matter here: the machine may be busy."""

import gc
import os

from hypothesis import HealthCheck, settings

busy = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("ds2d2", derandomize=bool(os.environ.get("CI")), **busy)
settings.load_profile("ds2d2")


def pytest_collection_finish():
    """What is imported by now lives to the end: Ultralytics' trainer collects garbage in each epoch, and need not look
    through all that again."""
    gc.collect()
    gc.freeze()
