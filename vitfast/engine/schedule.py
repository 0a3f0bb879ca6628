"""The learning rate of each step."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from vitfast.config.schema import ScheduleConfig
from vitfast.errors import UserError


def create_schedule(optimizer: Optimizer, config: ScheduleConfig, steps_per_epoch: int) -> LRScheduler:
    """Builds the learning rate: linear up over the warm-up, then along half a cosine down to ``min_lr``.

    With W warm-up steps, step ``i`` (from 0) has ``lr * (i + 1) / (W + 1)`` while ``i < W``; step W has ``lr`` itself.
    Call ``step()`` after each optimizer step.

    Args:
        optimizer: whose groups' ``lr`` is the peak.
        config: epochs, warm-up epochs (may be a fraction), final rate.
        steps_per_epoch: optimizer steps in an epoch.

    Raises:
        UserError: if the warm-up leaves no step for the cosine.
    """
    total_steps = config.epochs * steps_per_epoch
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    if warmup_steps >= total_steps:
        raise UserError(
            f"schedule.warmup_epochs={config.warmup_epochs:g} leaves nothing of schedule.epochs={config.epochs}; "
            "use fewer warm-up epochs (0 switches the warm-up off) or more epochs"
        )
    cosine = CosineAnnealingLR(optimizer, T_max=total_steps - warmup_steps, eta_min=config.min_lr)
    if warmup_steps == 0:
        return cosine
    warmup = LinearLR(optimizer, start_factor=1 / (warmup_steps + 1), total_iters=warmup_steps)
    return SequentialLR(optimizer, [warmup, cosine], milestones=[warmup_steps])
