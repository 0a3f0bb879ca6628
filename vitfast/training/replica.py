"""The task as a training step calls it: alone, one of several copies, or spread over the ranks."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from vitfast.tasks import Task
from vitfast.training.ranks import Ranks


class Replica:
    """A task whose gradients are averaged over the ranks with the last part of each step.

    Args:
        task: on its device; the ranks' weights become the main rank's.
        ranks: who train together.
        sharded: whether ``shard`` has spread the task, rather than that every rank has a copy.
        compiled: whether it runs through ``torch.compile``.
    """

    def __init__(self, task: Task, ranks: Ranks, *, sharded: bool, compiled: bool) -> None:
        self._copies: DistributedDataParallel | None = None
        self._spread: FSDPModule | None = None
        if ranks.world > 1 and sharded:
            assert isinstance(task, FSDPModule)
            self._spread = task
        elif ranks.world > 1:
            self._copies = DistributedDataParallel(task)
        forward: Any = task if self._copies is None else self._copies
        self._forward = torch.compile(forward) if compiled else forward

    def __call__(self, images: Tensor, labels: Tensor, *, last: bool) -> dict[str, Tensor]:
        """Runs the task on a part of this rank's images; the backward of the ``last`` part averages the gradients."""
        if self._spread is not None:
            self._spread.set_requires_gradient_sync(last)
        with self._averaging(last):
            result: dict[str, Tensor] = self._forward(images, labels)
        return result

    def _averaging(self, last: bool) -> AbstractContextManager[object]:
        return nullcontext() if self._copies is None or last else self._copies.no_sync()
