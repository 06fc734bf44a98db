"""How long an example of hypothesis may take does not matter here: the machine may be busy."""

import os

from hypothesis import HealthCheck, settings

busy = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("ds2d2", derandomize=bool(os.environ.get("CI")), **busy)
settings.load_profile("ds2d2")
