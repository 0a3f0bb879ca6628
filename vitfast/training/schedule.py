"""The length of a run and its learning rate schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    SequentialLR,
    StepLR,
)

from vitfast.config.schema import ScheduleConfig
from vitfast.errors import UserError


@dataclass(frozen=True)
class TrainingLength:
    """The length of a run in optimizer steps; with ``schedule.steps`` the last epoch may be incomplete.

    Attributes:
        steps_per_epoch: steps in a complete epoch.
        total_steps: steps of the run.
        warmup_steps: steps of the warm-up.
        note: why the warm-up is not as long as the options say, or None.
    """

    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    note: str | None = None

    @classmethod
    def of(cls, config: ScheduleConfig, steps_per_epoch: int) -> TrainingLength:
        """Computes the length from the options; a warm-up as long as the run is shortened to a tenth of it."""
        total = config.epochs * steps_per_epoch if config.steps is None else config.steps
        warmup = config.warmup_steps
        if warmup is None:
            warmup = round(config.warmup_epochs * steps_per_epoch)
        note = None
        if warmup >= total:
            given = (
                f"schedule.warmup_epochs={config.warmup_epochs:g}"
                if config.warmup_steps is None
                else f"schedule.warmup_steps={config.warmup_steps}"
            )
            whole = f"schedule.epochs={config.epochs}" if config.steps is None else f"schedule.steps={config.steps}"
            warmup = total // 10
            note = f"{given} is not shorter than {whole}: the warm-up is shortened to {warmup} steps, a tenth of that"
        return cls(steps_per_epoch, total, warmup, note)

    @property
    def epochs(self) -> int:
        """Number of epochs, including an incomplete last one."""
        return math.ceil(self.total_steps / self.steps_per_epoch)

    def steps_in(self, epoch: int) -> int:
        """Steps of an epoch, counted from 0."""
        return min(self.steps_per_epoch, self.total_steps - epoch * self.steps_per_epoch)

    def describe(self) -> str:
        """One phrase for the log."""
        last = self.steps_in(self.epochs - 1)
        incomplete = f", the last of {last}" if last < self.steps_per_epoch else ""
        return f"{self.total_steps:,} steps: {self.epochs} epochs of {self.steps_per_epoch} steps{incomplete}"


def create_schedule(optimizer: Optimizer, config: ScheduleConfig, length: TrainingLength) -> LRScheduler:
    """Builds the learning rate schedule: a linear warm-up, then the decay ``config.name``.

    With W warm-up steps, step ``i`` (from 0) has ``start + (lr - start) * i / W`` while ``i < W``, where start is
    ``warmup_lr`` or ``lr / (W + 1)``; step W has ``lr``. Then the rate decays to ``min_lr`` along half a cosine or a
    line, in steps by a factor, or not at all. With ``warmup_over_decay`` the cosine spans all steps, and step W has
    what it has there. Call ``step()`` after each optimizer step.

    Raises:
        UserError: if ``min_lr`` is above a group's learning rate, or ``warmup_lr`` is.
    """
    decay = _create_decay(optimizer, config, length)
    if length.warmup_steps == 0:
        return decay
    start_factor = 1 / (length.warmup_steps + 1)
    if config.warmup_lr is not None:
        peak = max(group["initial_lr"] for group in optimizer.param_groups)
        if config.warmup_lr > peak:
            raise UserError(
                f"schedule.warmup_lr={config.warmup_lr:g} is above {peak:.3g}, the learning rate at the end of the "
                "warm-up"
            )
        start_factor = config.warmup_lr / peak
    warmup = LinearLR(optimizer, start_factor=start_factor, total_iters=length.warmup_steps)
    return SequentialLR(optimizer, [warmup, decay], milestones=[length.warmup_steps])


def _create_decay(optimizer: Optimizer, config: ScheduleConfig, length: TrainingLength) -> LRScheduler:
    steps = length.total_steps - length.warmup_steps
    if config.name == "constant":
        return ConstantLR(optimizer, factor=1.0, total_iters=0)
    if config.name == "step":
        return StepLR(optimizer, max(1, round(config.step_epochs * length.steps_per_epoch)), config.step_factor)
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    if min(rates) < config.min_lr:
        raise UserError(
            f"schedule.min_lr={config.min_lr:g} is above {min(rates):.3g}, which is the lowest learning rate that "
            "optim.lr, optim.lr_batch and optim.layer_decay give; use a smaller schedule.min_lr, or change these"
        )
    if config.name == "linear":
        return LinearLR(optimizer, start_factor=1.0, end_factor=config.min_lr / max(rates), total_iters=steps)
    if config.warmup_over_decay:
        return LambdaLR(optimizer, [partial(_late_cosine, length, config.min_lr / rate) for rate in rates])
    return CosineAnnealingLR(optimizer, T_max=steps, eta_min=config.min_lr)


def _late_cosine(length: TrainingLength, lowest: float, step: int) -> float:
    """Returns the factor, from 1 to ``lowest``, of a step after the warm-up for a cosine over the whole run."""
    share = (length.warmup_steps + step) / length.total_steps
    return lowest + (1 - lowest) * (1 + math.cos(math.pi * min(share, 1.0))) / 2
