"""Everything that training changes, and how it is saved and restored exactly."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from vitfast.config.schema import Config
from vitfast.engine.averaging import create_average
from vitfast.engine.checkpoint import CheckpointError
from vitfast.engine.meter import ClassificationMeter
from vitfast.engine.optimizer import create_optimizer
from vitfast.engine.random_state import capture_random_state, restore_random_state
from vitfast.engine.schedule import create_schedule
from vitfast.tasks import Task

_COUNTERS = ("epoch", "step", "step_in_epoch", "seconds_in_epoch", "metrics_lines", "best_top1", "best_step")


class TrainingState:
    """Weights, their average, optimizer, schedule, running metrics and counters.

    Args:
        task: what is trained, already on its device.
        config: of the run.
        steps_per_epoch: optimizer steps in an epoch.
        num_classes: of the data.
        device: where it runs.

    Attributes:
        epoch: epochs done.
        step: optimizer steps done.
        step_in_epoch: those of them in the running epoch.
        seconds_in_epoch: spent on them.
        metrics_lines: lines of ``metrics.jsonl`` that belong to this state.
        best_top1: highest validation top-1 so far, or None.
        best_step: the step of it, or None.
        metrics: of the last whole epoch, by split.
    """

    def __init__(
        self, task: Task, config: Config, steps_per_epoch: int, num_classes: int, device: torch.device
    ) -> None:
        self.task = task
        self.average = create_average(task, config.optim.ema_decay)
        self.optimizer = create_optimizer(task, config.optim, config.data.batch_size)
        self.schedule = create_schedule(self.optimizer, config.schedule, steps_per_epoch)
        self.meter = ClassificationMeter(num_classes, device)
        self.epoch = 0
        self.step = 0
        self.step_in_epoch = 0
        self.seconds_in_epoch = 0.0
        self.metrics_lines = 0
        self.best_top1: float | None = None
        self.best_step: int | None = None
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
        """The state dict of the model."""
        return self.task.model.state_dict()

    def ema_state(self) -> dict[str, Tensor] | None:
        """The state dict of the averaged model, with the same keys, or None."""
        return None if self.average is None else self.evaluated_task.model.state_dict()

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
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "ema_updates": None if self.average is None else self.average.n_averaged.cpu().clone(),
            "meter": self.meter.state_dict(),
            "random": capture_random_state(),
            "metrics": self.metrics,
            **{name: getattr(self, name) for name in _COUNTERS},
        }

    def load_state_dict(self, state: dict[str, Any], model: dict[str, Tensor], ema: dict[str, Tensor] | None) -> None:
        """Restores everything, the process's random generators included.

        Args:
            state: from ``state_dict``.
            model: from ``model_state``.
            ema: from ``ema_state``.

        Raises:
            CheckpointError: if a part is missing or does not fit this model.
        """
        try:
            self.task.model.load_state_dict(model)
            if self.average is not None:
                if ema is None or state["ema_updates"] is None:
                    raise CheckpointError("the checkpoint has no averaged weights, but optim.ema_decay is set")
                self.evaluated_task.model.load_state_dict(ema)
                self.average.n_averaged.copy_(state["ema_updates"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            self.meter.load_state_dict(state["meter"])
            self.metrics = dict(state["metrics"])
            for name in _COUNTERS:
                setattr(self, name, state[name])
            restore_random_state(state["random"])
        except (KeyError, TypeError, RuntimeError) as error:
            raise CheckpointError(f"the training state does not fit this run: {error}") from error
        except ValueError as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"the training state does not fit this run: {error}") from error
