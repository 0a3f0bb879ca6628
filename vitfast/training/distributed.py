"""Distributed training: the ranks of a run, data parallelism and sharding."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from vitfast.device import select_device
from vitfast.errors import UserError
from vitfast.tasks import Task


class Ranks:
    """The process group of ``torchrun``, or a single process; a context in which the ranks can communicate.

    The methods are collective: all ranks must call them in the same order. With a single process they return their
    argument immediately.

    Args:
        device_name: ``auto``, ``cpu`` or ``cuda``; each process uses the GPU of its local rank.
        timeout_s: timeout of collective operations.

    Attributes:
        rank: of this process, from 0.
        world: number of processes.
        device: of this process.

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
                    f"local rank {local} has no GPU: torch sees {torch.cuda.device_count()}; start as many processes "
                    "as there are GPUs (torchrun --nproc-per-node), or use train.device=cpu"
                )
            self.device = torch.device("cuda", local)

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and logs."""
        return self.rank == 0

    def largest(self, *values: float) -> list[float]:
        """Returns the maximum of each value over the ranks."""
        if self.world == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return [float(value) for value in tensor.tolist()]

    def gather(self, value: Any) -> list[Any]:
        """Returns the values of all ranks, in their order, on every rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def from_main(self, value: Any) -> Any:
        """Returns the value of rank 0."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def lost_contact(self, error: RuntimeError) -> bool:
        """Whether an error means that another rank has ended or does not respond."""
        return self.world > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error))

    def __enter__(self) -> Ranks:
        if self.world > 1:
            store, rank, world = next(dist.rendezvous("env://", timeout=self._timeout))
            # torchrun's store survives a restart: keys of the earlier processes must not be read by the new ones
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

    def __exit__(self, *_: object) -> None:
        if self.world > 1:
            dist.destroy_process_group()


class Replica:
    """A task whose gradients are averaged over the ranks in the last part of each step."""

    def __init__(self, task: Task, ranks: Ranks, *, compiled: bool) -> None:
        replicated = ranks.world > 1 and not isinstance(task, FSDPModule)
        self._module: nn.Module = DistributedDataParallel(task) if replicated else task
        self._forward: Any = torch.compile(self._module) if compiled else self._module

    def __call__(self, images: Tensor, labels: Tensor, *, last: bool) -> dict[str, Tensor]:
        """Runs the task on a part of this rank's images; the backward pass of the ``last`` part averages gradients."""
        if isinstance(self._module, FSDPModule):
            self._module.set_requires_gradient_sync(last)
        sync: AbstractContextManager[object] = nullcontext()
        if isinstance(self._module, DistributedDataParallel) and not last:
            sync = self._module.no_sync()
        with sync:
            result: dict[str, Tensor] = self._forward(images, labels)
        return result


def shard(module: nn.Module, ranks: Ranks) -> None:
    """Shards parameters, gradients and optimizer state over the ranks in place, by torch's ``fully_shard`` (FSDP2).

    Each transformer block is a unit that is gathered for its computation (Zhao et al., "PyTorch FSDP", 2023).
    """
    mesh = init_device_mesh(ranks.device.type, (ranks.world,))
    for name, submodule in list(module.named_modules()):
        if name.rpartition(".")[2] == "blocks":
            for block in submodule.children():
                fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)


def full_tensor(tensor: Tensor) -> Tensor:
    """Returns the full tensor of a sharded one, collectively; any other tensor unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def full_state(value: Any) -> Any:
    """Copies a nested state with full tensors in place of sharded ones, collectively."""
    if isinstance(value, DTensor):
        return full_tensor(value.detach())
    if isinstance(value, dict):
        return {key: full_state(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(full_state(item) for item in value)
    return value


def load_weights(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Loads a full state dict into a module, sharded or not.

    Raises:
        RuntimeError: if keys or shapes differ, as ``load_state_dict`` does.
    """
    current = module.state_dict()
    module.load_state_dict({key: _shard_like(tensor, current.get(key)) for key, tensor in state.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads a full optimizer state into an optimizer over parameters, sharded or not."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    entries = {
        index: {
            key: _shard_like(value, parameters[index]) if isinstance(value, Tensor) and value.ndim else value
            for key, value in entry.items()
        }
        for index, entry in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": entries})


def _shard_like(tensor: Tensor, current: Tensor | None) -> Tensor:
    if not isinstance(current, DTensor) or tensor.shape != current.shape:
        return tensor
    return distribute_tensor(tensor.to(current.device), current.device_mesh, current.placements)
