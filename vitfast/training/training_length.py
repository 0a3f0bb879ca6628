"""How long a run is, counted in steps and in epochs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vitfast.config.schema import ScheduleConfig
from vitfast.errors import UserError


@dataclass(frozen=True)
class TrainingLength:
    """The steps of a run; the last epoch is shorter where ``schedule.steps`` says so.

    Attributes:
        steps_per_epoch: optimizer steps in a whole epoch.
        total_steps: of the run.
        warmup_steps: until the learning rate is reached.
    """

    steps_per_epoch: int
    total_steps: int
    warmup_steps: int

    @classmethod
    def of(cls, config: ScheduleConfig, steps_per_epoch: int) -> TrainingLength:
        """Counts the steps that the options mean.

        Raises:
            UserError: if the warm-up leaves no step.
        """
        total = config.epochs * steps_per_epoch if config.steps is None else config.steps
        warmup = config.warmup_steps
        if warmup is None:
            warmup = round(config.warmup_epochs * steps_per_epoch)
        if warmup >= total:
            given = (
                f"schedule.warmup_epochs={config.warmup_epochs:g}"
                if config.warmup_steps is None
                else f"schedule.warmup_steps={config.warmup_steps}"
            )
            whole = f"schedule.epochs={config.epochs}" if config.steps is None else f"schedule.steps={config.steps}"
            raise UserError(
                f"{given} leaves nothing of {whole}; use a shorter warm-up (0 switches it off) or a longer run"
            )
        return cls(steps_per_epoch, total, warmup)

    @property
    def epochs(self) -> int:
        """Epochs of the run, a last one that is cut short among them."""
        return math.ceil(self.total_steps / self.steps_per_epoch)

    def steps_in(self, epoch: int) -> int:
        """Steps of an epoch, counted from 0."""
        return min(self.steps_per_epoch, self.total_steps - epoch * self.steps_per_epoch)

    def describe(self) -> str:
        """One phrase for the log."""
        last = self.steps_in(self.epochs - 1)
        cut = f", the last of {last}" if last < self.steps_per_epoch else ""
        return f"{self.total_steps:,} steps: {self.epochs} epochs of {self.steps_per_epoch} steps{cut}"
