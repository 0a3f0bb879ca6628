"""The optimizer and its parameter groups: weight decay and layer-wise learning rates."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vitfast.config.schema import OptimConfig

_BLOCK = re.compile(r"(?:^|\.)(?:blocks\.|encoder_layer_)(\d+)\.")  # encoder_layer_: torchvision
_AFTER_BLOCKS = re.compile(r"(?:^|\.)(?:norm|fc_norm|head|head_dist|encoder\.ln|heads)\.")


def parameter_groups(
    module: nn.Module,
    weight_decay: float,
    lr: float | None = None,
    layer_decay: float | None = None,
    decay_all: bool = False,
) -> list[dict[str, Any]]:
    """Splits the trainable parameters by weight decay and optionally by layer.

    One-dimensional parameters (biases, norm scales) and those that a submodule lists in ``no_weight_decay()`` (position
    embeddings, tokens) have no weight decay, as in DeiT.

    With ``layer_decay`` d, the learning rate after the blocks is ``lr``, in the last of n blocks ``lr * d``, in the
    first one ``lr * d ** n``, and before the blocks ``lr * d ** (n + 1)`` (Clark et al.,
    "ELECTRA", 2020; Bao et al., "BEiT", 2021). The layers of timm's models are those of their ``group_matcher``, with
    which the final norm belongs to the last block.

    Args:
        module: a model, or a task around one.
        weight_decay: of matrices.
        lr: learning rate of the head with ``layer_decay``.
        layer_decay: factor of the learning rate from a layer to the one before; None: groups without ``lr``.
        decay_all: whether all parameters have weight decay.

    Returns:
        Non-empty groups for a torch optimizer: from the head down, those with weight decay first.
    """
    exempt = _exempt_names(module)
    learning = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    num_blocks = 1 + max((int(match[1]) for name, _ in learning if (match := _BLOCK.search(name))), default=-1)
    foreign = {} if layer_decay is None else _timm_layers(module)
    by_layer: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
    for name, parameter in learning:
        below_head = 0 if layer_decay is None else foreign.get(name, _layers_below_head(name, num_blocks))
        decayed, plain = by_layer.setdefault(below_head, ([], []))
        is_plain = not decay_all and (parameter.ndim <= 1 or name in exempt)
        (plain if is_plain else decayed).append(parameter)
    groups: list[dict[str, Any]] = []
    for below_head, (decayed, plain) in sorted(by_layer.items()):
        rate = {} if layer_decay is None or lr is None else {"lr": lr * layer_decay**below_head}
        groups.append({"params": decayed, "weight_decay": weight_decay, **rate})
        groups.append({"params": plain, "weight_decay": 0.0, **rate})
    return [group for group in groups if group["params"]]


def _layers_below_head(name: str, num_blocks: int) -> int:
    block = _BLOCK.search(name)
    if block is not None:
        return num_blocks - int(block[1])
    return 0 if _AFTER_BLOCKS.search(name) else num_blocks + 1


def _timm_layers(module: nn.Module) -> dict[str, int]:
    """Returns how far below the head each parameter of a model of timm is, by timm's grouping."""
    for prefix, submodule in module.named_modules():
        if callable(matcher := getattr(submodule, "group_matcher", None)):
            from timm.models import group_parameters

            layers = group_parameters(submodule, matcher(coarse=False), reverse=True)
            return {f"{prefix}.{name}": max(layers.values()) - layer for name, layer in layers.items()}
    return {}


def _exempt_names(module: nn.Module) -> set[str]:
    names: set[str] = set()
    for prefix, submodule in module.named_modules():
        listed: Callable[[], set[str]] | None = getattr(submodule, "no_weight_decay", None)
        if callable(listed):
            names.update(f"{prefix}.{name}" if prefix else name for name in listed())
    return names


def create_optimizer(module: nn.Module, config: OptimConfig, batch_size: int | None = None) -> torch.optim.Optimizer:
    """Builds torch's optimizer over ``parameter_groups``, fused if every parameter supports it.

    Args:
        module: a model, or a task around one, already on its device.
        config: of the run.
        batch_size: images in a step, with which ``config.lr_batch`` scales the learning rate (Goyal et al., 2017).
    """
    scale = batch_size / config.lr_batch if batch_size is not None and config.lr_batch is not None else 1.0
    lr = config.lr * scale
    groups = parameter_groups(module, config.weight_decay, lr, config.layer_decay, config.decay_all)
    parameters = [parameter for group in groups for parameter in group["params"]]
    fused = all(map(_can_be_fused, parameters))
    if config.larc is not None:
        return Larc(groups, config.larc, config.larc_clip, lr=lr, momentum=config.momentum, nesterov=config.nesterov)
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=config.momentum, nesterov=config.nesterov, fused=fused or None)
    adam = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    beta1, beta2 = config.betas
    return adam(groups, lr=lr, betas=(beta1, beta2), eps=config.eps, fused=fused or None)


class Larc(torch.optim.SGD):
    """SGD with layer-wise adaptive rate scaling, LARC (You et al., 2017, arXiv:1708.03888), as NVIDIA's apex has it.

    The gradient g of a parameter p with weight decay w becomes ``(g + w * p) * rate`` with
    ``rate = trust * |p| / (|g| + w * |p| + 1e-8)``; if the norm of p or g is 0, it stays g, without weight decay.

    Args:
        groups: of parameters, with ``weight_decay``.
        trust: the trust coefficient.
        clip: whether ``rate`` is at most 1 / learning rate times it, so that no step exceeds SGD's.
        options: of ``torch.optim.SGD``.
    """

    def __init__(self, groups: list[dict[str, Any]], trust: float, clip: bool = False, **options: Any) -> None:
        super().__init__(groups, **options)
        self._trust, self._clip = trust, clip

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Scales the gradients, which are changed in place, and makes a step of SGD."""
        decays = [group["weight_decay"] for group in self.param_groups]
        for group, decay in zip(self.param_groups, decays, strict=True):
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            gradients = [parameter.grad for parameter in parameters]
            norms = zip(torch._foreach_norm(parameters), torch._foreach_norm(gradients), strict=True)
            for parameter, gradient, (norm, gradient_norm) in zip(parameters, gradients, norms, strict=True):
                rate = self._trust * norm / (gradient_norm + decay * norm + 1e-8)
                if self._clip:
                    rate = (rate / group["lr"]).clamp(max=1)
                applies = (norm != 0) & (gradient_norm != 0)
                gradient.copy_(torch.where(applies, (gradient + decay * parameter) * rate, gradient))
            group["weight_decay"] = 0.0
        try:
            return super().step(closure)
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay


def _can_be_fused(parameter: Tensor) -> bool:
    # torch has no fused SGD for sharded parameters
    sharded = isinstance(parameter, DTensor)
    return parameter.is_floating_point() and parameter.device.type in ("cpu", "cuda") and not sharded
