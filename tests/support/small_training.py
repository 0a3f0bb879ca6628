"""The training state of a tiny model, without data."""

from __future__ import annotations

import functools

import torch

import vitfast
from vitfast.config import load_config
from vitfast.config.schema import Config
from vitfast.tasks import create_plain_task
from vitfast.training.distributed import Ranks
from vitfast.training.schedule import TrainingLength
from vitfast.training.training_state import TrainingState

_OPTIONS = ("schedule.epochs=2", "schedule.warmup_epochs=1", "optim.ema_decay=0.5", "train.device=cpu")


@functools.cache
def _config(*options: str) -> Config:
    return load_config([*_OPTIONS, *options])


def new_state(*options: str) -> TrainingState:
    """The state of a run of 2 epochs of 3 steps."""
    config = _config(*options)
    model = vitfast.create_model("vit_nano_patch2_8", embed_dim=8, num_heads=2, depth=1, num_classes=3)
    length = TrainingLength.of(config.schedule, 3)
    return TrainingState(create_plain_task(model), config, length, 3, Ranks("cpu"))


def make_step(state: TrainingState) -> None:
    """Updates the weights with random gradients."""
    for parameter in state.task.parameters():
        parameter.grad = torch.randn_like(parameter)
    state.optimizer.step()
    state.schedule.step()
    state.average.update_parameters(state.task)
    state.step += 1
    state.step_in_epoch += 1
