"""Everything that training changes, and how it is saved and restored exactly."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from vitfast.config.schema import Config
from vitfast.evaluation.meter import ClassificationMeter
from vitfast.runs.checkpoint import CheckpointError
from vitfast.tasks import Task
from vitfast.training.averaging import create_average
from vitfast.training.optimizer import create_optimizer
from vitfast.training.random_state import capture_random_state, restore_random_state
from vitfast.training.ranks import Ranks
from vitfast.training.schedule import create_schedule
from vitfast.training.sharding import load_optimizer, load_weights, shard, whole_state
from vitfast.training.training_length import TrainingLength

_COUNTERS = (
    "epoch",
    "step",
    "step_in_epoch",
    "seconds_in_epoch",
    "metrics_lines",
    "best_top1",
    "best_step",
    "skipped_in_a_row",
)


class TrainingState:
    """Weights, their average, optimizer, schedule, loss scaler, running metrics and counters.

    Args:
        task: what is trained, already on its device; ``train.shard`` spreads it over the ranks.
        config: of the run.
        length: of the run.
        num_classes: of the data.
        ranks: who train together.

    Attributes:
        epoch: epochs done.
        step: optimizer steps done.
        step_in_epoch: those of them in the running epoch.
        seconds_in_epoch: spent on them.
        metrics_lines: lines of ``metrics.jsonl`` that belong to this state.
        best_top1: highest validation top-1 so far, or None.
        best_step: the step of it, or None.
        skipped_in_a_row: steps up to now that fp16 skipped because their gradients overflowed.
        metrics: of the last whole epoch, by split.
    """

    def __init__(self, task: Task, config: Config, length: TrainingLength, num_classes: int, ranks: Ranks) -> None:
        self.task = task
        self.ranks = ranks
        self.average = create_average(task, config.optim.ema_decay)
        if config.train.shard and ranks.world > 1:
            shard(task, ranks)
            if self.average is not None:
                shard(self.evaluated_task, ranks)
        self.optimizer = create_optimizer(task, config.optim, config.data.batch_size)
        self.schedule = create_schedule(self.optimizer, config.schedule, length)
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=config.train.precision == "fp16")
        self.meter = ClassificationMeter(num_classes, ranks.device, getattr(task.model, "num_exits", 1))
        self.epoch = 0
        self.step = 0
        self.step_in_epoch = 0
        self.seconds_in_epoch = 0.0
        self.metrics_lines = 0
        self.best_top1: float | None = None
        self.best_step: int | None = None
        self.skipped_in_a_row = 0
        self.metrics: dict[str, Any] = {}

    @property
    def evaluated_task(self) -> Task:
        """What is validated and tested: the average if there is one."""
        return self.task if self.average is None else cast(Task, self.average.module)

    @property
    def learning_rate(self) -> float:
        """That of the coming step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def model_state(self) -> dict[str, Tensor]:
        """The state dict of the model; like the other states it is whole, and every rank has to ask for it."""
        state: dict[str, Tensor] = whole_state(dict(self.task.model.state_dict()))
        return state

    def ema_state(self) -> dict[str, Tensor] | None:
        """The state dict of the averaged model, with the same keys, or None."""
        return None if self.average is None else whole_state(dict(self.evaluated_task.model.state_dict()))

    def finish_epoch(self, metrics: dict[str, Any]) -> bool:
        """Counts a whole epoch.

        Args:
            metrics: by split; ``metrics["val"]["top1"]`` decides about the best.

        Returns:
            Whether it is the best epoch so far.
        """
        self.metrics = metrics
        self.epoch += 1
        self.step_in_epoch, self.seconds_in_epoch = 0, 0.0
        self.meter.reset()
        top1 = metrics["val"]["top1"] if "val" in metrics else None
        is_best = top1 is not None and (self.best_top1 is None or top1 > self.best_top1)
        if is_best:
            self.best_top1, self.best_step = top1, self.step
        return is_best

    def state_dict(self) -> dict[str, Any]:
        """Returns all but the weights themselves: tensors and plain values for ``state.pt``."""
        return {
            "optimizer": whole_state(self.optimizer.state_dict()),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema_updates": None if self.average is None else self.average.n_averaged.cpu().clone(),
            "ranks": self.ranks.gather({"random": capture_random_state(), "meter": self.meter.state_dict()}),
            "metrics": self.metrics,
            **{name: getattr(self, name) for name in _COUNTERS},
        }

    def load_state_dict(self, state: dict[str, Any], model: dict[str, Tensor], ema: dict[str, Tensor] | None) -> None:
        """Restores everything, this rank's random generators included.

        Args:
            state: from ``state_dict``. Of another number of ranks, the main rank takes the running metrics of all of
                them, and a rank that was not there keeps the random generators it has.
            model: from ``model_state``.
            ema: from ``ema_state``.

        Raises:
            CheckpointError: if a part is missing or does not fit this model.
        """
        try:
            load_weights(self.task.model, model)
            if self.average is not None:
                if ema is None or state["ema_updates"] is None:
                    raise CheckpointError("the checkpoint has no averaged weights, but optim.ema_decay is set")
                load_weights(self.evaluated_task.model, ema)
                self.average.n_averaged.copy_(state["ema_updates"])
            load_optimizer(self.optimizer, state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            self.scaler.load_state_dict(state["scaler"])
            self.metrics = dict(state["metrics"])
            for name in _COUNTERS:
                setattr(self, name, state[name])
            self._load_rank(state["ranks"])
        except (KeyError, TypeError, RuntimeError) as error:
            raise CheckpointError(f"the training state does not fit this run: {error}") from error
        except ValueError as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"the training state does not fit this run: {error}") from error

    def _load_rank(self, saved: list[dict[str, Any]]) -> None:
        rank, world = self.ranks.rank, self.ranks.world
        meters = [one["meter"] for one in saved]
        if len(saved) == world:
            meters = meters[rank : rank + 1]
        elif not self.ranks.is_main:
            meters = []
        self.meter.load_state_dict(*meters)
        if rank < len(saved):
            restore_random_state(saved[rank]["random"])
