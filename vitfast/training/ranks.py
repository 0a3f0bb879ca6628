"""The processes that train together."""

from __future__ import annotations

import os
from datetime import timedelta
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vitfast.device import select_device
from vitfast.errors import UserError


class Ranks:
    """One process, or those that ``torchrun`` started; a context, in which they can talk to each other.

    With a single process every method returns what it was given, at once. The methods are collective: all ranks have
    to call them in the same order.

    Args:
        device_name: ``auto``, ``cpu`` or ``cuda``; on GPUs each process takes the one of its local rank.
        timeout_s: how long a rank waits for the others before it gives up with an error.

    Attributes:
        rank: of this process, from 0.
        world: number of processes.
        device: where this one computes.

    Raises:
        UserError: if the device does not exist, or there are more processes than GPUs on this machine.
    """

    def __init__(self, device_name: str = "auto", timeout_s: float = 600.0) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self._timeout = timedelta(seconds=timeout_s)
        self.device = select_device(device_name)
        if self.device.type == "cuda" and self.world > 1:
            local = int(os.environ.get("LOCAL_RANK", "0"))
            if local >= torch.cuda.device_count():
                raise UserError(
                    f"local rank {local} has no GPU of its own: torch sees {torch.cuda.device_count()}; start as many "
                    "processes as there are GPUs (torchrun --nproc-per-node), or use train.device=cpu"
                )
            self.device = torch.device("cuda", local)

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes files and speaks."""
        return self.rank == 0

    def largest(self, *values: float) -> list[float]:
        """Returns the largest of each value over the ranks."""
        if self.world == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return [float(value) for value in tensor.tolist()]

    def gather(self, value: Any) -> list[Any]:
        """Returns the values of all ranks, in their order, to each of them."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def from_main(self, value: Any) -> Any:
        """Returns the main rank's value; what the others give is ignored."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def lost_contact(self, error: RuntimeError) -> bool:
        """Whether an error means that another rank is gone or does not answer."""
        return self.world > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error))

    def __enter__(self) -> Ranks:
        if self.world > 1:
            store, rank, world = next(dist.rendezvous("env://", timeout=self._timeout))
            # torchrun's store outlives a restart: what the earlier processes left in it would lead the new ones astray
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            store = dist.PrefixStore(f"vitfast/attempt_{attempt}", store)
            on_gpu = self.device.type == "cuda"
            if on_gpu:
                torch.cuda.set_device(self.device)
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
                store=store,
                rank=rank,
                world_size=world,
                timeout=self._timeout,
                device_id=self.device if on_gpu else None,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.world > 1:
            dist.destroy_process_group()


def total_norm(gradients: list[Tensor]) -> Tensor:
    """Returns the norm of all gradients together, also where each rank holds a part of them."""
    norm = torch.nn.utils.get_total_norm(gradients)
    return whole(norm)


def whole(tensor: Tensor) -> Tensor:
    """Returns a tensor itself, or what the ranks hold parts of, whole; then every rank has to call it."""
    full = getattr(tensor, "full_tensor", None)
    return tensor if full is None else full()
