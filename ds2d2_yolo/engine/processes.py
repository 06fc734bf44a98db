"""Training with several processes, on one machine or more: ``torchrun train.py ...`` and Ultralytics' ``device=0,1``.

Ultralytics knows processes that it has started itself, on GPUs of one machine. Here they join before anything else is
done, so that they agree on the run's folder, work on CPUs too, and count their losses' normalisers together.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from unittest.mock import patch

import psutil
import torch
import torch.distributed as dist
from torch import nn
from ultralytics.engine import validator
from ultralytics.utils import LOCAL_RANK, LOGGER, RANK
from ultralytics.utils.loss import v8DetectionLoss
from ultralytics.utils.torch_utils import parse_device

from ds2d2_yolo.errors import PeerEnded, UserError
from ds2d2_yolo.method.shared import processes, shared

_lower: list[tuple[str, int]] = []  # machine and number of the processes before this one
PATIENCE = timedelta(hours=3)  # as Ultralytics': the first process may validate, or train for an epoch, alone
_LOST = re.compile(r"\b(gloo|nccl|connection (closed|reset|refused)|ProcessGroup\w*|TCPStore|broken pipe)\b", re.I)
# This process's own faults, though NCCL tells of them
_OWN = re.compile(r"out of memory|Failed to CUDA|shared memory|/dev/shm", re.I)


def join(device: str | None) -> str | None:
    """Join the processes that a launcher has started; return the device this run is to be told.

    Raises:
        UserError: The first process cannot be reached, or there are or were named fewer GPUs than processes.
    """
    if LOCAL_RANK == -1:
        return device
    given = parse_device("" if device is None else device)
    if not given:
        given = ",".join(map(str, range(_here()))) if torch.cuda.is_available() else "cpu"
    if dist.is_initialized():  # by the stage before
        return given
    if given.startswith(("npu", "xpu", "mps")):
        raise UserError(f"device={device}: several processes train on NVIDIA's or AMD's GPUs, or with device=cpu")
    if given != "cpu":
        os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")  # as Ultralytics': or PATIENCE ends without an error
        if _here() > torch.cuda.device_count():
            raise UserError(
                f"{_here()} processes, and {torch.cuda.device_count()} GPUs: start fewer, or say device=cpu"
            )
        if _here() > len(given.split(",")):
            raise UserError(f"device={given} has fewer GPUs than there are processes, {_here()}: name more, or none")
        torch.cuda.set_device(_gpu(given))
    try:
        dist.init_process_group("gloo" if given == "cpu" else "nccl", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:  # dist.DistError among them
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UserError(f"process {RANK} cannot join the others at {where}: {str(error).splitlines()[0]}") from error
    everyone = [None] * processes()
    dist.all_gather_object(everyone, (socket.gethostname(), os.getpid()))
    _lower.extend(everyone[:RANK])
    return given


def leave() -> None:
    """Part from the other processes after a run that went well."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def agreed(value):
    """What the first process holds, on every process."""
    if processes() == 1:
        return value
    held = [value if RANK == 0 else None]
    dist.broadcast_object_list(held, 0)
    return held[0]


def is_first() -> bool:
    """Whether this process writes files and says what happens."""
    return RANK in {-1, 0}


def first_alive() -> bool:
    """Whether no process before this one is left to say what happens; those of other machines are thought to be."""
    return all(machine == socket.gethostname() and not _runs(number) for machine, number in _lower)


def _runs(number: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    return False


@contextmanager
def together(how_to_resume) -> Iterator[None]:
    """Count normalisers over all processes; when one of them ends, end the others with a line that says so.

    Raises:
        PeerEnded: Another process has ended; names the way to go on.
    """
    if processes() == 1:
        yield
        return
    try:
        with patch.object(v8DetectionLoss, "get_assigned_targets_and_loss", _with_shared_normalizer):
            yield
    except RuntimeError as error:
        if _OWN.search(str(error)) or not (isinstance(error, dist.DistError) or _LOST.search(str(error))):
            raise
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise PeerEnded(
            f"another process of this run has ended or is out of reach ({said}); {how_to_resume()}"
        ) from error


_alone = v8DetectionLoss.get_assigned_targets_and_loss


def _with_shared_normalizer(self, preds, batch, **kwargs) -> tuple:
    """Ultralytics' losses, divided by the assigned scores of all processes instead of this one's."""
    if not torch.is_grad_enabled():  # validation: processes have different numbers of batches
        return _alone(self, preds, batch, **kwargs)
    counted = []
    hook = self.assigner.register_forward_hook(lambda *call: counted.append(call[2][2].sum()))
    try:
        found, loss, items = _alone(self, preds, batch, **kwargs)
    finally:
        hook.remove()
    part = counted[0].clamp(min=1) / shared(counted[0]).clamp(min=1 / processes())  # Ultralytics counts one at least
    return found, loss * part, {name: item * part for name, item in items.items()}


class ManyProcesses:
    """Mixin of a trainer: several processes train one model."""

    def _check_processes(self) -> None:
        """Take the number of processes from the launcher instead of the devices.

        Raises:
            UserError: A batch that cannot be shared out.
        """
        if LOCAL_RANK == -1:
            return
        self.world_size = processes()
        if self.batch_size < 1 or self.batch_size % self.world_size:
            near = max(round(self.batch_size / self.world_size), 1) * self.world_size
            raise UserError(
                f"batch={self.batch_size} is the batch of all processes and cannot be shared out among "
                f"{self.world_size}; take batch={near}"
            )
        if self.args.rect:
            LOGGER.warning("'rect=True' is not possible with several processes and is switched off.")
            self.args.rect = False

    def _setup_ddp(self) -> None:
        """Take this process's GPU; the processes have met before."""
        if self.device.type != "cpu":
            self.device = torch.device("cuda", _gpu(self.args.device))
            torch.cuda.set_device(self.device)
            self.accelerator = torch.cuda

    def _setup_scheduler(self) -> None:
        """Set up for the first process's number of epochs: with ``time=`` each guesses its own, once an epoch."""
        if self.args.time:
            self.epochs = self.args.epochs = agreed(self.epochs)
        super()._setup_scheduler()

    def _setup_train(self) -> None:
        """Set up as Ultralytics does, which names the GPU of its wrapper: on a CPU there is none to name."""
        if processes() == 1 or self.device.type != "cpu":
            return super()._setup_train()
        wrapper = nn.parallel.DistributedDataParallel
        with patch.object(nn.parallel, "DistributedDataParallel", partial(_on_cpu, wrapper)):
            return super()._setup_train()

    def final_eval(self) -> None:
        """Validate as Ultralytics does."""
        with self.validating():
            return super().final_eval()

    @contextmanager
    def validating(self) -> Iterator[None]:
        """Let Ultralytics validate on a CPU what it is given; among several processes it looks for a GPU for each."""
        if processes() == 1 or self.device.type != "cpu":
            yield
            return
        no_gpu = SimpleNamespace(current_device=lambda: 0)
        on_cpu = partial(_model_on_cpu, validator.AutoBackend)
        with patch.multiple(validator, get_torch_device_backend=lambda *_: no_gpu, AutoBackend=on_cpu):
            yield

    def _model_train(self) -> None:
        """Begin an epoch; its order of images must be known before loader workers begin to read."""
        if processes() > 1:
            self.train_loader.sampler.set_epoch(self.epoch)
        super()._model_train()


def _on_cpu(wrapper, model: nn.Module, device_ids=None, **kwargs) -> nn.Module:
    return wrapper(model, **kwargs)


def _model_on_cpu(backend, *args, **kwargs) -> nn.Module:
    return backend(*args, **{**kwargs, "device": torch.device("cpu")})


def _here() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", 1)))


def _gpu(devices: str) -> int:
    """The index of this process's GPU among those given."""
    return int(devices.split(",")[LOCAL_RANK])
