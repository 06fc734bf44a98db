"""What a run says when a signal ends it."""

import importlib
import os
import signal
from types import SimpleNamespace

import pytest
from ultralytics.nn import tasks

from ds2d2_yolo.engine.base import SettingsTrainer
from ds2d2_yolo.engine.signals import sigterm_interrupts, undisturbed
from ds2d2_yolo.errors import PeerEnded, UserError


@pytest.mark.parametrize("error", [PeerEnded, UserError])
def test_a_launcher_ends_what_is_left_no_sooner_than_it_has_spoken(error):
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(error), sigterm_interrupts():
            raise error("another process has ended")
        once = signal.getsignal(signal.SIGTERM)
        assert (once != before) == (error is PeerEnded)
        if once != before:
            os.kill(os.getpid(), signal.SIGTERM)
            assert signal.getsignal(signal.SIGTERM) == before
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_more_is_dropped_and_a_second_one_heard(number):
    heard = []
    before = signal.signal(number, lambda *_: heard.append(number))
    try:
        own = signal.getsignal(number)
        with undisturbed():
            os.kill(os.getpid(), number)
            assert not heard
            os.kill(os.getpid(), number)
            assert heard == [number]
        assert signal.getsignal(number) == own
        with undisturbed():
            pass
        assert signal.getsignal(number) == own
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_launchers_signal_does_not_keep_a_run_from_naming_the_way_on(number):
    def how_to_resume(_):
        os.kill(os.getpid(), number)  # while the checkpoint is read
        return "continue so"

    trainer = SimpleNamespace(_folder=SimpleNamespace(how_to_resume=how_to_resume), resume=False)
    assert SettingsTrainer._how_to_resume(trainer) == "continue so"


def test_an_interrupted_reading_is_no_broken_checkpoint(tmp_path, monkeypatch):
    """Ultralytics takes back an alias that it has not set yet, and that error hides the interrupt."""
    (tmp_path / "some.pt").write_bytes(b"whatever")

    def interrupted(name, *more):
        if name == "torch.nn":
            raise KeyboardInterrupt
        return imported(name, *more)

    imported = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tasks.torch_safe_load(tmp_path / "some.pt")
