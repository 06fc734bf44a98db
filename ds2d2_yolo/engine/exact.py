"""A run that was killed and resumed ends with the weights of one that was not, bit for bit.

That is on a CPU, with as many threads.

Ultralytics' checkpoints hold the EMA and the optimizer in half precision, and nothing of the weights in training, the
gradients that wait for their step, or the random state. What is missing lies beside ``last.pt`` while a run is under
way. Random numbers need no saving: every epoch begins with seeds of its own, and with fresh workers.
"""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from ultralytics.utils import LOGGER, RANK
from ultralytics.utils.torch_utils import unwrap_model

from ds2d2_yolo.engine.processes import is_first
from ds2d2_yolo.restricted import load_tensors


class ExactResume:
    """Mixin of a trainer: saves and restores all that the next epoch depends on."""

    _accumulate = 1
    _offset = 0  # on ``accumulate``, from a resumption to the first step after it
    _last_step = -1  # the batch, counted over all epochs, that the optimizer's last step came with
    _restored: dict[str, Tensor] | None = None  # gradients that wait for the epoch to begin
    _rescale = 1.0  # these were multiplied by another loss scale
    _again = False  # the epoch under way begins once more

    @property
    def accumulate(self) -> int:
        """Batches between two steps, as Ultralytics counts them: its loop believes that no step has been made yet."""
        return self._accumulate + self._offset

    @accumulate.setter
    def accumulate(self, batches: int) -> None:
        self._accumulate = batches

    def _build_train_pipeline(self) -> None:
        """Build it; where memory ran out, again: for a smaller batch, of which none has waited for a step yet."""
        self._again, self._offset = self.optimizer is not None, 0  # the optimizer's decay goes by ``accumulate``
        super()._build_train_pipeline()

    def _model_train(self) -> None:
        """Begin an epoch: the same in a run that has come this far and in one that is resumed here."""
        super()._model_train()
        seed = self.args.seed + 1 + RANK + 1_000_003 * (self.epoch + 1)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        loader = self.train_loader
        if loader.generator is not None:
            loader.generator.manual_seed(seed)
        if self.args.exact:  # loader workers begin anew, which takes a while
            begin_anew(loader.dataset)
            loader.reset()
            read_once(loader)
        self._batch = self.epoch * len(loader) - 1
        if self._again:
            self._last_step, self._offset, self._again = self._batch, self._batch + 1, False
        if self._restored is not None:
            # Not sooner: Ultralytics' warm-up goes by ``accumulate`` as it was set up
            self._offset = self._last_step + 1
            for name, parameter in unwrap_model(self.model).named_parameters():
                gradient = self._restored.get(name) if parameter.requires_grad else None  # ``freeze`` may be new
                if gradient is not None:
                    gradient = torch.empty_like(parameter).copy_(gradient).mul_(self._rescale)
                parameter.grad = gradient
            self._restored = None

    def preprocess_batch(self, batch: dict) -> dict:
        """Count the batch."""
        self._batch += 1
        return super().preprocess_batch(batch)

    def optimizer_step(self) -> None:
        """Step, and remember with which batch."""
        super().optimizer_step()
        self._last_step, self._offset = self._batch, 0

    def save_model(self) -> bool:
        """Save what Ultralytics' checkpoint leaves out, then the checkpoint, then let go of the epoch before."""
        if not self.args.exact:
            self.forget_state()
            return super().save_model()
        path = state_file(self.wdir, self.epoch)
        model = unwrap_model(self.model)
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        state = {
            "model": model.state_dict(),
            "ema": self.ema.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "since_step": self._batch - self._last_step,
            "gradients": grads if any(g.any() for g in grads.values()) else {},
            "loss_scale": self.scaler.get_scale(),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(buffer.getvalue())
        saved = super().save_model()
        for other in state_files(self.wdir):
            if other != path:
                other.unlink(missing_ok=True)
        return saved

    def resume_training(self, ckpt: dict | None) -> None:
        """Go on from the checkpoint, exactly where its epoch's state is there, else as Ultralytics does."""
        super().resume_training(ckpt)
        if ckpt is None or not self.resume:
            return
        self._restore_state()
        lay_out_as_parameters(self.optimizer)

    def _restore_state(self) -> None:
        path = state_file(self.last.parent, self.start_epoch - 1)
        state = load_tensors(path) if path.is_file() else None
        if state is None or not self._belongs(state):
            LOGGER.warning(f"{path.name} is not beside {self.last}: the run goes on from weights in half precision")
            return
        unwrap_model(self.model).load_state_dict(state["model"])
        for kept, group in zip(state["optimizer"]["param_groups"], self.optimizer.param_groups, strict=True):
            kept["fused"] = group.get("fused")  # what is possible is this device's to say
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema:
            self.ema.ema.load_state_dict(state["ema"])
        # Another number of processes may make another number of batches an epoch
        self._last_step = self.start_epoch * len(self.train_loader) - 1 - state["since_step"]
        self._restored = state["gradients"]
        self._rescale = self.scaler.get_scale() / state.get("loss_scale", 1.0)

    def _belongs(self, state: dict) -> bool:
        """Whether a state is of the checkpoint that was just loaded, and not of another run in this folder."""
        if not self.ema:
            return True
        pairs = ((value, state["ema"].get(name)) for name, value in self.ema.ema.state_dict().items())
        return all(
            kept is not None and torch.equal(value.cpu().half().nan_to_num(), kept.cpu().half().nan_to_num())
            for value, kept in pairs
        )

    def forget_state(self) -> None:
        """The run is over: there is nothing to resume."""
        if is_first():
            for path in state_files(self.wdir):
                path.unlink(missing_ok=True)


def state_file(folder: Path, epoch: int) -> Path:
    """Where the state after an epoch (from 0 on) is kept; of the kind of path that ``folder`` is."""
    return folder / f"state-{epoch}.pt"


def state_files(folder: Path) -> list[Path]:
    """All such files."""
    return [path for path in Path(folder).glob("state-*.pt") if path.stem.removeprefix("state-").isdecimal()]


def lay_out_as_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Give an optimizer's state the memory layout of its parameters, which fused kernels on a GPU insist on.

    A state keeps that of where it was saved: Ultralytics trains with channels last on a GPU, and not on a CPU.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


class OnePass:
    """The batches of one epoch, where Ultralytics' sampler goes on: its loader reads ahead what ``reset`` discards."""

    def __init__(self, sampler):
        self.sampler = sampler

    def __iter__(self):
        return iter(self.sampler)


def read_once(loader) -> None:
    """Let a loader that was just reset read one epoch."""
    if not isinstance(loader.batch_sampler, OnePass):
        object.__setattr__(loader, "batch_sampler", OnePass(loader.batch_sampler.sampler))  # as Ultralytics sets it


class Distinct(list):
    """Numbers of images, each once: one that is read takes the place of where it only stood."""

    def append(self, image: int) -> None:
        """Put an image at the end."""
        if image in self:
            self.remove(image)
        super().append(image)


def begin_anew(dataset) -> None:
    """Forget the images last read, from which Ultralytics' mosaic draws, and let others stand for them.

    Empty, it would make the first mosaics of every epoch, and of each worker, of one image and few more.
    """
    if not hasattr(dataset, "buffer") or dataset.cache == "ram":  # with all images at hand it draws from all
        return
    for i in dataset.buffer:
        dataset.ims[i] = dataset.im_hw0[i] = dataset.im_hw[i] = None
    dataset.buffer = Distinct(random.sample(range(dataset.ni), max(dataset.max_buffer_length - 1, 0)))
