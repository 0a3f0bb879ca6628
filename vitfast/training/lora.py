"""LoRA: low-rank updates of fixed weights (Hu et al., "LoRA", 2021), by the peft package."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vitfast.errors import UserError, import_optional
from vitfast.models import ImageModel


def add_lora(model: ImageModel, rank: int, alpha: int) -> None:
    """Fixes all weights of a model but its heads, and adds trainable low-rank matrices to its linear layers, in place.

    A layer then computes ``x @ (weight + alpha / rank * B @ A).T + bias`` with A ``[rank, in]`` and B ``[out, rank]``,
    which starts as zeros: the outputs are those of the model before.

    Args:
        model: a model with linear layers beside its heads.
        rank: of the update.
        alpha: scale of the update times ``rank``.

    Raises:
        UserError: peft is not installed, or the model has no such layers.
    """
    peft = import_optional("peft", "finetune.lora_rank", "lora")
    names = [
        name
        for name, layer in model.named_modules()
        if type(layer) is nn.Linear
        and not f"{name}.".startswith(model.head_prefixes)
        and not name.endswith(".pos_proj")  # of ConViT: never called, its weight is read
    ]
    if not names:
        raise UserError(f"finetune.lora_rank does not support {model.model_name}: only its head has linear layers")
    peft.inject_adapter_in_model(peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=names), model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or name.startswith(model.head_prefixes))


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """Returns the state dict of a model with the low-rank updates added to the weights, under the model's own keys."""
    state = dict(model.state_dict())
    for name, layer in model.named_modules():
        if not hasattr(layer, "get_delta_weight"):  # peft's
            continue
        own = {key: state.pop(key) for key in list(state) if key.startswith(f"{name}.")}
        base = f"{name}.base_layer."
        for key, tensor in own.items():
            if key.startswith(base):
                state[f"{name}.{key.removeprefix(base)}"] = tensor
        update: Any = layer.get_delta_weight("default")
        state[f"{name}.weight"] = state[f"{name}.weight"] + update.detach()
    return state
