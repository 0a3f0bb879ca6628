"""The optimizer and what it decays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vitfast.config.schema import OptimConfig


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Splits the parameters that learn into those with and those without weight decay.

    Without: everything one-dimensional (biases, norm scales) and everything that a submodule names in
    ``no_weight_decay()`` (position embeddings, tokens), as in DeiT.

    Args:
        module: a model, or a task around one.
        weight_decay: the decay of the first group.

    Returns:
        Two groups for a torch optimizer, the first with ``weight_decay``, the second with 0; empty ones are left out.
    """
    exempt = _exempt_names(module)
    decayed: list[Tensor] = []
    plain: list[Tensor] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (plain if parameter.ndim <= 1 or name in exempt else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _exempt_names(module: nn.Module) -> set[str]:
    names: set[str] = set()
    for prefix, submodule in module.named_modules():
        listed: Callable[[], set[str]] | None = getattr(submodule, "no_weight_decay", None)
        if callable(listed):
            names.update(f"{prefix}.{name}" if prefix else name for name in listed())
    return names


def create_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Builds torch's AdamW over ``parameter_groups``: fused where every parameter allows it, else torch's own choice.

    Args:
        module: a model, or a task around one, already on its device.
        config: learning rate, decay, betas, epsilon.
    """
    groups = parameter_groups(module, config.weight_decay)
    parameters = [parameter for group in groups for parameter in group["params"]]
    fused = all(parameter.is_floating_point() and parameter.device.type in ("cpu", "cuda") for parameter in parameters)
    beta1, beta2 = config.betas
    return torch.optim.AdamW(groups, lr=config.lr, betas=(beta1, beta2), eps=config.eps, fused=fused or None)
