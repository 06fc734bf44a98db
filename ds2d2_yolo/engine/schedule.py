"""The paper's schedule: the learning rate falls at given epochs after a warm-up counted in steps, without Nesterov."""

from __future__ import annotations

from bisect import bisect_right

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from ultralytics.utils import LOGGER, RANK, colorstr

from ds2d2_yolo.errors import UserError

WARMUP_START = 0.001  # of the learning rate; the paper's


def lr_factor(epoch: int, steps: list[int], gamma: float) -> float:
    """Return what the learning rate is multiplied by in ``epoch``, counted from 0: gamma for every step behind it."""
    return gamma ** bisect_right(steps, epoch)


def warmup_factor(step: int, length: int) -> float:
    """Return what the learning rate is multiplied by in the optimizer's ``step``, counted from 0: linear up to 1."""
    return WARMUP_START + (1 - WARMUP_START) * min(step / length, 1.0)


class Schedule:
    """Adds ``lr_steps``, ``lr_gamma``, ``warmup_iterations`` and ``nesterov`` to an Ultralytics trainer.

    Without them the trainer's schedule is Ultralytics' own, untouched.
    """

    def build_optimizer(self, model, name="auto", lr=0.001, momentum=0.9, decay=1e-5, iterations=1e5) -> Optimizer:
        """Build Ultralytics' optimizer, whose SGD is Nesterov's unless ``nesterov`` is off.

        Raises:
            UserError: Nesterov's SGD without momentum.
        """
        plain = "sgd" in str(name).lower() and momentum == 0
        if plain and self.args.nesterov:
            raise UserError("momentum=0: Nesterov's SGD needs some momentum; add nesterov=False for SGD without any")
        # Ultralytics always asks for Nesterov's, which PyTorch refuses without momentum
        optimizer = super().build_optimizer(model, name, lr, 0.9 if plain else momentum, decay, iterations)
        for group in optimizer.param_groups:
            if "nesterov" in group:
                group.update(nesterov=self.args.nesterov, momentum=0.0 if plain else group["momentum"])
        chosen = str(name).lower() == "auto" and self.args.optimizer == "MuSGD"
        if chosen and self.args.teacher and not self.args.student_run and RANK in {-1, 0}:
            LOGGER.info(
                f"{colorstr('DS2D2:')} MuSGD, with which no gain of DS2D2 has been measured; those in the README "
                "are of optimizer=AdamW lr0=0.002 cos_lr=True (a plain student then with the same)"
            )
        return optimizer

    def _setup_scheduler(self) -> None:
        steps = self._lr_steps()
        if not steps:
            return super()._setup_scheduler()
        self.lf = lambda epoch: lr_factor(epoch, steps, self.args.lr_gamma)
        self.scheduler = LambdaLR(self.optimizer, lr_lambda=self.lf)

    def _lr_steps(self) -> list[int]:
        """The epochs of ``lr_steps``; the amplifier stage has them at the same part of its own length."""
        student_run = self.args.student_run
        if not student_run:
            return self.args.lr_steps
        stretch = self.epochs / student_run["epochs"]
        return [max(round(epoch * stretch), 1) for epoch in self.args.lr_steps]

    def _get_warmup_iterations(self, num_batches: int) -> int:
        """Ultralytics' warm-up, which counts batches; none beside ours, which ``optimizer_step`` makes."""
        return 0 if self.args.warmup_iterations else super()._get_warmup_iterations(num_batches)

    def _setup_train(self) -> None:
        super()._setup_train()
        stage, late = self.args.student_run, [epoch for epoch in self._lr_steps() if epoch >= self.epochs]
        if late and not stage:  # the steps of a stage are the student's, rounded to its own length
            LOGGER.warning(f"lr_steps={late}: a run of {self.epochs} epochs never gets there.")
        steps = len(self.train_loader) * self.epochs // self.accumulate
        if self.args.warmup_iterations > steps:
            run = "the amplifier's stage" if stage else "the run"
            LOGGER.warning(f"warmup_iterations={self.args.warmup_iterations}: {run} has {steps} steps only.")

    def optimizer_step(self) -> None:
        """Step as Ultralytics does, during the warm-up with part of the learning rate."""
        done, length = self.ema.updates, self.args.warmup_iterations  # the EMA's count is in the checkpoints
        if length and done <= length:  # at `length` the whole rate is back, which the scheduler sets once an epoch
            for group in self.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * self.lf(self.epoch) * warmup_factor(done, length)
        super().optimizer_step()
