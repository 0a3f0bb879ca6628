"""Interrupts a training process at a chosen place, so that a test is reproducible."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vitfast.data import loader
from vitfast.evaluation import evaluate
from vitfast.tasks import ClassificationTask
from vitfast.training.trainer import Trainer
from vitfast.weights import checkpoint


@dataclass(frozen=True)
class Interruption:
    """A signal, or a loss that is not a number, at a place.

    Attributes:
        at: ``step`` (after ``count`` optimizer steps), ``evaluation`` (after ``count`` batches of it), ``save`` (as the
            ``count``-th file or folder of a checkpoint is flushed to the disk) or ``worker`` (in a worker of the data
            loader that has started, but not yet prepared itself for signals); or ``loss``, and no signal: the
            ``count``-th one is NaN.
        count: counted from 1 in this process.
        number: of the signal.
        times: how often it is sent.
        to_group: whether the whole process group gets it, as Ctrl+C and most batch systems do.
    """

    at: str
    count: int = 1
    number: int = signal.SIGTERM
    times: int = 1
    to_group: bool = False

    def install(self) -> None:
        """Prepares this process, for the rest of its life."""
        if self.at == "step":
            _after(Trainer, "_train_step", self)
        elif self.at == "evaluation":

            class Meter(evaluate.ClassificationMeter):
                pass

            evaluate.ClassificationMeter = Meter  # training has the other one
            _after(Meter, "update", self)
        elif self.at == "save":
            _after(checkpoint, "flush_to_disk", self)
        elif self.at == "worker":
            _before(loader, "_start_worker", self._send)
        elif self.at == "loss":
            _spoil(ClassificationTask, "forward", self.count)
        else:
            raise ValueError(f"at={self.at!r}")

    def _send(self) -> None:
        for _ in range(self.times):
            if self.to_group:
                os.killpg(0, self.number)
            else:
                os.kill(os.getpid(), self.number)


def _after(owner: Any, name: str, interruption: Interruption) -> None:
    original, calls = getattr(owner, name), 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        result = original(*arguments, **options)
        calls += 1
        if calls == interruption.count:
            interruption._send()
        return result

    setattr(owner, name, counted)


def _before(owner: Any, name: str, action: Callable[[], None]) -> None:
    original = getattr(owner, name)

    def prepared(*arguments: Any, **options: Any) -> Any:
        action()
        return original(*arguments, **options)

    setattr(owner, name, prepared)


def _spoil(owner: Any, name: str, count: int) -> None:
    original, calls = getattr(owner, name), 0

    def spoiled(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        result = original(*arguments, **options)
        return {**result, "loss": result["loss"] * float("nan")} if calls == count else result

    setattr(owner, name, spoiled)
