"""Signals that end a run: a scheduler's notice, Ctrl-C, a launcher's end of what is left."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ds2d2_yolo.errors import PeerEnded


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM, a scheduler's notice, end the block as Ctrl-C does: what was saved is named, with the way on."""
    if threading.current_thread() is not threading.main_thread():  # only there can it be told
        yield
        return

    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except PeerEnded:
        own = before  # of the launcher, which ends what is left: this process first says how to go on

        def before(*_) -> None:
            signal.signal(signal.SIGTERM, own)  # a second one is heard

        raise
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let what is said at the end of a run be said: the next SIGINT and SIGTERM are dropped, a second one is heard.

    A launcher sends one to each process that is left, after the terminal or the process that ended has sent its own.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def drop(number: int, _) -> None:
        signal.signal(number, before.pop(number))

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in handlers.items() if handler is not None}  # None: not Python's
    for number in list(before):
        signal.signal(number, drop)
    try:
        yield
    finally:
        for number in list(before):
            if (handler := before.pop(number, None)) is not None:  # not heard just now
                signal.signal(number, handler)
