"""Runs of several processes, as users launch them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What `torchrun` runs. The launcher imports PyTorch too, and to collect garbage meanwhile takes a fifth of the time
LAUNCHER = "import gc; gc.disable(); from torch.distributed.run import main; main()"
# The same with processes that are forked, so that what is slow to import is imported once; nothing that reads RANK is
FORKING = "import gc; gc.disable(); import cv2, matplotlib.pyplot, torchvision, torch._dynamo"
FORKING += "; gc.enable(); from torch.distributed.run import main; main()"


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def launch(number, *command, machine=None, port=None, forked=True, **environment):
    """Starts `torchrun` with so many processes of a script; with `machine` it is that one (0 or 1) of two.

    `forked`: the processes share what their launcher has imported, else they are interpreters of their own.
    """
    many = ["--nnodes=2", f"--node_rank={machine}"] if machine is not None else ["--nnodes=1"]
    where = ["--master_addr=127.0.0.1", f"--master_port={port or free_port()}", f"--nproc_per_node={number}"]
    launcher = [sys.executable, "-c", FORKING if forked else LAUNCHER, *many, *where]
    launcher += ["--run_path", "--start_method=fork"] if forked else []
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*launcher, *map(str, command)], cwd=ROOT, env={**os.environ, **own}, **pipes)


def torchrun(number, *command, timeout=300, **options):
    """Runs it to its end."""
    process = launch(number, *command, **options)
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(command, process.returncode, out, err)
