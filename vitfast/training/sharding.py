"""Models that are spread over the ranks (FSDP2), and their states whole, as one process would have them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from vitfast.training.ranks import Ranks, whole


def shard(module: nn.Module, ranks: Ranks) -> None:
    """Spreads parameters, their gradients and what an optimizer keeps for them over the ranks, in place.

    Each transformer block is gathered when it computes and dropped again (Zhao et al., "PyTorch FSDP", 2023; torch's
    ``fully_shard``).

    Args:
        module: a task or model on its device; every ``nn.Module`` in a list or sequence named ``blocks`` is a unit.
        ranks: at least two.
    """
    mesh = init_device_mesh(ranks.device.type, (ranks.world,))
    for name, submodule in list(module.named_modules()):
        if name.rpartition(".")[2] == "blocks":
            for block in submodule.children():
                fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)


def whole_state(value: Any) -> Any:
    """Copies a nested state with every tensor whole; what is not spread stays as it is. All ranks have to call it."""
    if isinstance(value, DTensor):
        return whole(value.detach())
    if isinstance(value, dict):
        return {key: whole_state(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(whole_state(item) for item in value)
    return value


def load_weights(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Loads a whole state dict, of which each rank keeps its part.

    Raises:
        RuntimeError: if keys or shapes differ, as ``load_state_dict`` does.
    """
    own = module.state_dict()
    module.load_state_dict({key: _like(tensor, own.get(key)) for key, tensor in state.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads a whole optimizer state, of which each rank keeps its part."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    entries = {
        index: {
            key: _like(value, parameters[index]) if isinstance(value, Tensor) and value.ndim else value
            for key, value in entry.items()
        }
        for index, entry in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": entries})


def _like(tensor: Tensor, own: Tensor | None) -> Tensor:
    if not isinstance(own, DTensor) or tensor.shape != own.shape:
        return tensor
    return distribute_tensor(tensor.to(own.device), own.device_mesh, own.placements)
