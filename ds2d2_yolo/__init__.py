"""Dual-Stream Spectral Decoupling Distillation (DS2D2) of object detectors, on Ultralytics.

from ds2d2_yolo import DS2D2Trainer  # first: keeps Ultralytics from installing packages and from phoning home
from ultralytics import YOLO

YOLO("yolo26n.yaml").train(trainer=DS2D2Trainer, data="my.yaml", teacher="teacher/best.pt")
"""

import os
import sys

__version__ = "0.1.0"
__all__ = ("DS2D2Trainer", "__version__")

# Ultralytics reads these once, when it is first imported, so they stand here and act if this package is imported
# first. A variable that the user has set wins.
_SWITCHES = {
    # `ultralytics.utils.ONLINE` becomes False: no usage statistics (events.py), no crash reports (set_sentry), no
    # question for a newer release (check_pip_update_available), and a failed download gives up at once instead of
    # waiting 5, 10, 20 s. The persistent setting `sync` asks for the first two as well; it belongs to the user's
    # Ultralytics settings file and is left alone.
    "YOLO_OFFLINE": "true",
    # check_requirements and check_apt_requirements report a missing package instead of running pip, uv or apt.
    "YOLO_AUTOINSTALL": "false",
    # Checkpoints are unpickled by an allow list, and model YAML files are read without eval, in child processes too;
    # ds2d2_yolo/restricted.py does the rest.
    "ULTRALYTICS_SAFE_LOAD": "true",
    # Albumentations, where it is installed, asks for a newer release of itself when it is imported.
    "NO_ALBUMENTATIONS_UPDATE": "1",
}
# No switch of Ultralytics stops the following. Weights, data sets and URLs that the user names are fetched where a
# network is there. So is, once a machine, Arial.ttf for labels in plots (check_font: one request, given up after
# 3 s). yolo26n.pt, for the check of mixed precision, is not (ds2d2_yolo/engine/offline.py).
# Ultralytics Platform needs ULTRALYTICS_API_KEY, and ClearML, Comet, DVC, MLflow and Ray Tune need their package to
# be installed: both are the user's decision.
for _name, _value in _SWITCHES.items():
    os.environ.setdefault(_name, _value)
# As the user has set it, for ds2d2_yolo/threads.py: Ultralytics sets it too
OMP_NUM_THREADS = None if "ultralytics" in sys.modules else os.environ.get("OMP_NUM_THREADS")


def __getattr__(name):
    """Import the trainer, and PyTorch with it, when it is first asked for."""
    if name == "DS2D2Trainer":
        from ds2d2_yolo.importing import load

        return load("ds2d2_yolo.engine.trainer").DS2D2Trainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *__all__})
