"""The learning rate of each step."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    SequentialLR,
    StepLR,
)

from vitfast.config.schema import ScheduleConfig
from vitfast.errors import UserError
from vitfast.training.training_length import TrainingLength


def create_schedule(optimizer: Optimizer, config: ScheduleConfig, length: TrainingLength) -> LRScheduler:
    """Builds the learning rate: linear up over the warm-up, then as ``config.name`` says.

    With W warm-up steps, step ``i`` (from 0) has ``lr * (i + 1) / (W + 1)`` while ``i < W``; step W has ``lr`` itself.
    Then it falls along half a cosine or a line to ``min_lr``, in steps by a factor, or not at all. Call ``step()``
    after each optimizer step.

    Args:
        optimizer: whose groups' ``lr`` is the peak.
        config: how the rate falls.
        length: of the run and of its warm-up.

    Raises:
        UserError: if ``min_lr`` is above a group's learning rate.
    """
    fall = _create_fall(optimizer, config, length)
    if length.warmup_steps == 0:
        return fall
    warmup = LinearLR(optimizer, start_factor=1 / (length.warmup_steps + 1), total_iters=length.warmup_steps)
    return SequentialLR(optimizer, [warmup, fall], milestones=[length.warmup_steps])


def _create_fall(optimizer: Optimizer, config: ScheduleConfig, length: TrainingLength) -> LRScheduler:
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
    return CosineAnnealingLR(optimizer, T_max=steps, eta_min=config.min_lr)
