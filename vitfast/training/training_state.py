"""The state that training changes: weights, EMA, optimizer, schedule, metrics, counters and random generators."""

from __future__ import annotations

import random
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vitfast.config.schema import Config
from vitfast.errors import UserError, one_line
from vitfast.evaluation.meter import ClassificationMeter
from vitfast.models import ImageModel
from vitfast.tasks import Task
from vitfast.training.check_state import (
    check_counters,
    check_meters,
    check_task,
    check_weights,
    checked_optimizer,
    checked_scaler,
    checked_schedule,
    checked_updates,
    require,
)
from vitfast.training.distributed import Ranks, full_state, load_optimizer, load_weights, shard
from vitfast.training.finetune import FrozenTrunk
from vitfast.training.lora import merged_state
from vitfast.training.optimizer import create_optimizer
from vitfast.training.schedule import TrainingLength, create_schedule
from vitfast.weights.manifest import EMA_FILE, MODEL_FILE, CheckpointError

_COUNTERS = (
    "epoch",
    "step",
    "step_in_epoch",
    "seconds_in_epoch",
    "metric_rows",
    "best_top1",
    "best_step",
    "skipped_in_a_row",
)


class TrainingState:
    """Everything that training changes, saved to and restored from a checkpoint.

    Attributes:
        epoch: complete epochs.
        step: optimizer steps.
        step_in_epoch: steps in the current epoch.
        seconds_in_epoch: time spent on them.
        metric_rows: the rows of ``metrics.jsonl`` up to this state; they belong to the checkpoint, so that the file can
            be restored from any of them.
        best_top1: highest validation top-1 so far, or None.
        best_step: its step, or None.
        trunk: what may be frozen in an epoch.
        has_lora: whether low-rank matrices are trained beside fixed weights.
        skipped_in_a_row: consecutive steps that fp16 has skipped because gradients overflowed.
        metrics: of the last complete epoch, by split.
    """

    def __init__(self, task: Task, config: Config, length: TrainingLength, num_classes: int, ranks: Ranks) -> None:
        self.task = task
        self.ranks = ranks
        self.length = length
        self.has_lora = config.finetune.lora_rank is not None
        self.trunk = FrozenTrunk(cast(ImageModel, task.model), config.finetune.freeze_epochs)
        if config.finetune.freeze_epochs is None:
            self.trunk.apply(0)  # the optimizer leaves out what never changes
        self.average = create_average(task, config.optim.ema_decay)
        if config.train.shard and ranks.world > 1:
            shard(task, ranks)
            if self.average is not None:
                shard(self.evaluated_task, ranks)
        self.optimizer = create_optimizer(task, config.optim, config.data.batch_size)
        self.schedule = create_schedule(self.optimizer, config.schedule, length)
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=config.train.precision == "fp16")
        self.meter = ClassificationMeter(num_classes, ranks.device, getattr(task.model, "num_exits", 1))
        self.epoch = self.step = self.step_in_epoch = self.skipped_in_a_row = 0
        self.seconds_in_epoch = 0.0
        self.best_top1: float | None = None
        self.best_step: int | None = None
        self.metrics: dict[str, Any] = {}
        self.metric_rows: list[dict[str, Any]] = []

    @property
    def evaluated_task(self) -> Task:
        """The task for validation and test: the average if there is one."""
        return self.task if self.average is None else cast(Task, self.average.module)

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def model_state(self) -> dict[str, Tensor]:
        """Returns the full state dict of the model, LoRA merged; collective, like the other states."""
        state: dict[str, Tensor] = full_state(merged_state(self.task.model))
        return state

    def ema_state(self) -> dict[str, Tensor] | None:
        """Returns the full state dict of the averaged model, with the same keys, or None."""
        return None if self.average is None else full_state(merged_state(self.evaluated_task.model))

    def finish_epoch(self, metrics: dict[str, Any]) -> bool:
        """Counts a complete epoch; returns whether its ``metrics["val"]["top1"]`` is the best so far."""
        self.metrics = metrics
        self.epoch += 1
        self.step_in_epoch, self.seconds_in_epoch = 0, 0.0
        self.meter.reset()
        top1 = accuracy_of(metrics.get("val", {}))
        is_best = top1 is not None and (self.best_top1 is None or top1 > self.best_top1)
        if is_best:
            self.best_top1, self.best_step = top1, self.step
        return is_best

    def state_dict(self) -> dict[str, Any]:
        """Returns everything except the weights, as tensors and plain values for ``state.pt``."""
        return {
            "optimizer": full_state(self.optimizer.state_dict()),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema_updates": None if self.average is None else self.average.n_averaged.cpu().clone(),
            "unmerged": self._unmerged_states() if self.has_lora else None,
            "task": self.task.shared_state(),
            "ranks": self.ranks.gather(
                {
                    "random": capture_random_state(),
                    "meter": self.meter.state_dict(),
                    "task": self.task.rank_state(),
                }
            ),
            "metrics": self.metrics,
            "total_steps": self.length.total_steps,
            **{name: getattr(self, name) for name in _COUNTERS},
        }

    def load_state_dict(self, state: dict[str, Any], model: dict[str, Tensor], ema: dict[str, Tensor] | None) -> None:
        """Restores ``state_dict``, ``model_state`` and ``ema_state``, including this rank's random generators.

        From another number of ranks, rank 0 takes the running metrics of all ranks, a rank without a saved state keeps
        its random generators, and what a task keeps for each rank starts anew.

        Raises:
            CheckpointError: if a part is missing, has a wrong type or value, or does not fit this run; nothing of such
                a training state is used.
        """
        for name in ("optimizer", "schedule", "scaler", "ema_updates", "ranks", "metrics", "total_steps", *_COUNTERS):
            require(name in state, name, "in it")
        check_counters(state, self.length)
        check_meters(state["ranks"], self.meter.state_dict())
        shared = state.get("task", {})  # missing in earlier versions, which had no such task
        check_task(shared, self.task.shared_state(), "task")
        for rank, saved in enumerate(state["ranks"]):
            other_length = len(state["ranks"]) != self.ranks.world
            check_task(saved.get("task", {}), self.task.rank_state(), f"ranks.{rank}.task", any_length=other_length)
        steps = state["step"]
        optimizer = checked_optimizer(state["optimizer"], self.optimizer, steps)
        if state["total_steps"] < self.length.total_steps:
            self._extend(state, optimizer)
            schedule = self.schedule.state_dict()
        else:
            schedule = checked_schedule(state["schedule"], self.schedule.state_dict(), steps)
            require(schedule["last_epoch"] == steps, "schedule.last_epoch", f"{steps}, the step")
        scaler = checked_scaler(state["scaler"], self.scaler.state_dict())
        if self.has_lora:
            unmerged: Any = state.get("unmerged")
            require(isinstance(unmerged, list) and len(unmerged) == 2, "unmerged", "the weights and their average")
            model, ema = unmerged
        check_weights(model, self.task.model, MODEL_FILE)
        try:
            load_weights(self.task.model, model)
            if self.average is not None:
                if ema is None or state["ema_updates"] is None:
                    raise CheckpointError("the checkpoint has no averaged weights, but optim.ema_decay is set")
                check_weights(ema, self.task.model, EMA_FILE)
                load_weights(self.evaluated_task.model, ema)
                self.average.n_averaged.copy_(checked_updates(state["ema_updates"], steps))
        except RuntimeError as error:
            raise CheckpointError(f"the weights do not fit this run: {one_line(error)}") from error
        self.task.load_shared_state(shared)
        load_optimizer(self.optimizer, optimizer)
        self.schedule.load_state_dict(schedule)
        self.scaler.load_state_dict(scaler)
        self.metrics = state["metrics"]
        for name in _COUNTERS:
            setattr(self, name, state[name])
        self._load_rank(state["ranks"])

    def _extend(self, state: dict[str, Any], optimizer: dict[str, Any]) -> None:
        """Advances the new schedule to the step of a shorter run, and puts its learning rates into ``optimizer``."""
        steps = state["step"]
        if steps != state["epoch"] * self.length.steps_per_epoch + state["step_in_epoch"]:
            raise UserError(
                f"the run ended within an epoch, after {steps} steps of schedule.steps={state['total_steps']}, and "
                "cannot be extended; start a new run with model.checkpoint=RUN"
            )
        self.optimizer._opt_called = True  # type: ignore[attr-defined]  # else the schedule warns
        for _ in range(steps):
            self.schedule.step()
        for saved, group in zip(optimizer["param_groups"], self.optimizer.param_groups, strict=True):
            saved["lr"] = group["lr"]

    def _unmerged_states(self) -> list[dict[str, Tensor] | None]:
        """Returns the state dicts of the model and its average with the matrices of LoRA beside the weights."""
        average = None if self.average is None else self.evaluated_task.model.state_dict()
        states: list[dict[str, Tensor] | None] = full_state([self.task.model.state_dict(), average])
        return states

    def _load_rank(self, saved: list[dict[str, Any]]) -> None:
        rank = self.ranks.rank
        meters = [one["meter"] for one in saved]
        if len(saved) == self.ranks.world:
            meters = meters[rank : rank + 1]
        elif not self.ranks.is_main:
            meters = []
        self.meter.load_state_dict(*meters)
        if len(saved) == self.ranks.world:  # otherwise queues have other lengths, and are filled anew
            self.task.load_rank_state(saved[rank].get("task", {}))
        if rank < len(saved):
            restore_random_state(saved[rank].get("random"))


def accuracy_of(metrics: dict[str, Any]) -> float | None:
    """Returns the top-1 accuracy of a split's metrics, that of the kNN classifier (k=20) without labels, or None."""
    top1: float | None = metrics.get("top1", metrics.get("knn", {}).get("k20"))
    return top1


def create_average(module: nn.Module, decay: float | None) -> AveragedModel | None:
    """Creates an exponential moving average of ``module``, including buffers; None if ``decay`` is None.

    The first ``update_parameters(module)`` copies the weights, so that the average does not contain the random
    initialization. The averaged module is ``.module``.
    """
    if decay is None:
        return None
    return AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True).eval()


def seed_everything(seed: int) -> None:
    """Seeds the generators of Python, NumPy and torch (the latter on every device)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (the global generator, which libraries may use)
    torch.manual_seed(seed)


def capture_random_state() -> dict[str, Any]:
    """Returns the state of all generators as tensors and plain values, for ``torch.load(weights_only=True)``."""
    name, keys, position, has_gauss, cached_gaussian = np.random.get_state(legacy=True)  # noqa: NPY002
    assert isinstance(keys, np.ndarray)
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached_gaussian)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: Any) -> None:
    """Restores all generators; a state of another number of GPUs restores the generators that exist in both.

    Raises:
        UserError: if ``state`` is not from ``capture_random_state``.
    """
    try:
        version, internal, gauss = state["python"]
        are_numbers = type(version) is int and all(type(number) is int for number in internal)
        if not are_numbers or not isinstance(gauss, float | None):
            raise ValueError("Python's state consists of numbers")
        name, keys, position, has_gauss, cached_gaussian = state["numpy"]
        if name != "MT19937" or type(position) is not int or not 0 <= position <= len(keys) == 624:
            raise ValueError("NumPy's position is out of range")  # NumPy would read there
        random.setstate((version, tuple(internal), gauss))
        np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached_gaussian))  # noqa: NPY002
        torch.set_rng_state(state["torch"])
        devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
        for index, cuda_state in enumerate(state["cuda"][:devices]):
            torch.cuda.set_rng_state(cuda_state, index)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        raise UserError(f"the saved state of the random generators cannot be restored: {error}") from error
