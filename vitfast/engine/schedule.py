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


def create_schedule(optimizer: Optimizer, config: ScheduleConfig, steps_per_epoch: int) -> LRScheduler:
    """Builds the learning rate: linear up over the warm-up, then as ``config.name`` says.

    With W warm-up steps, step ``i`` (from 0) has ``lr * (i + 1) / (W + 1)`` while ``i < W``; step W has ``lr`` itself.
    Then it falls along half a cosine or a line to ``min_lr``, in steps by a factor, or not at all. Call ``step()``
    after each optimizer step.

    Args:
        optimizer: whose groups' ``lr`` is the peak.
        config: epochs, warm-up epochs (may be a fraction), how the rate falls.
        steps_per_epoch: optimizer steps in an epoch.

    Raises:
        UserError: if the warm-up leaves no step, or ``min_lr`` is above a group's learning rate.
    """
    total_steps = config.epochs * steps_per_epoch
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    if warmup_steps >= total_steps:
        raise UserError(
            f"schedule.warmup_epochs={config.warmup_epochs:g} leaves nothing of schedule.epochs={config.epochs}; "
            "use fewer warm-up epochs (0 switches the warm-up off) or more epochs"
        )
    fall = _create_fall(optimizer, config, total_steps - warmup_steps, steps_per_epoch)
    if warmup_steps == 0:
        return fall
    warmup = LinearLR(optimizer, start_factor=1 / (warmup_steps + 1), total_iters=warmup_steps)
    return SequentialLR(optimizer, [warmup, fall], milestones=[warmup_steps])


def _create_fall(optimizer: Optimizer, config: ScheduleConfig, steps: int, steps_per_epoch: int) -> LRScheduler:
    if config.name == "constant":
        return ConstantLR(optimizer, factor=1.0, total_iters=0)
    if config.name == "step":
        return StepLR(optimizer, max(1, round(config.step_epochs * steps_per_epoch)), config.step_factor)
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    if min(rates) < config.min_lr:
        raise UserError(
            f"schedule.min_lr={config.min_lr:g} is above {min(rates):.3g}, where optim.layer_decay lets the lowest "
            "layer start; use a smaller schedule.min_lr, or an optim.layer_decay nearer to 1"
        )
    if config.name == "linear":
        return LinearLR(optimizer, start_factor=1.0, end_factor=config.min_lr / max(rates), total_iters=steps)
    return CosineAnnealingLR(optimizer, T_max=steps, eta_min=config.min_lr)
