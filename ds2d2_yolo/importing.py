"""Imports that take seconds, PyTorch's among them, put off until something asks for them."""

import gc
import importlib


def load(module):
    """Import a module by its name. It stays for good: to look through it for garbage meanwhile would take a fifth of
    the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(module)
    finally:
        if collecting:
            gc.enable()
