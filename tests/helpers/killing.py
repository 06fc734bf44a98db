"""Trains in a child process, so that it can be killed: `start`, or `python -m tests.helpers.killing ARGUMENTS MOMENT`
with the arguments as a JSON list.

MOMENT is what ends it, for a `SIGKILL` cannot be aimed from outside: `batch:N` before the Nth batch of this process,
`save:PART:N` in the middle of the Nth file that is saved under a path with PART in it, `student/weights/last`; `none`.
"""

import builtins
import gc
import json
import multiprocessing
import os
import signal
import sys

from ultralytics.utils.callbacks.base import default_callbacks

from ds2d2_yolo import cli

LATER = ("torch._dynamo", "matplotlib.pyplot", "polars", "requests", "thop")  # what a training imports on its way


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def at_batch(n):
    seen = []

    def count(_):
        seen.append(1)
        if len(seen) == n:
            die()

    default_callbacks["on_train_batch_start"].append(count)


def at_save(start, n):
    seen, real = [], builtins.open

    def opened(file, mode="r", *args, **kwargs):
        stream = real(file, mode, *args, **kwargs)
        if str(file).endswith(".partial") and "w" in mode and start in str(file):
            seen.append(file)
            return Dying(stream) if len(seen) == n else stream
        return stream

    builtins.open = opened


class Dying:
    """A file that takes half of what is written and then kills the process."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, data):
        if len(data) > 1:
            self._stream.write(data[: len(data) // 2])
            self._stream.flush()
            die()
        return self._stream.write(data)

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stream.close()


def run(arguments, moment, output=None):
    """Trains in this process and ends it; what it prints goes to the file `output`."""
    gc.freeze()  # of what was imported before the fork: to look through it would copy it
    if output:
        for stream in (1, 2):
            os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    kind, *where, number = moment.split(":") if ":" in moment else (moment, 0)
    if kind != "none":
        {"batch": at_batch, "save": at_save}[kind](*where, int(number))
    sys.exit(cli.train(arguments))


def start(arguments, moment, output):
    """The exit code of `run` in a process of its own, a fork of one that has imported what a training needs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ds2d2_yolo.engine.train", "tests.helpers.killing", *LATER])
    process = context.Process(target=run, args=(arguments, moment, output))
    process.start()
    process.join()
    return process.exitcode


if __name__ == "__main__":
    run(json.loads(sys.argv[1]), sys.argv[2])
