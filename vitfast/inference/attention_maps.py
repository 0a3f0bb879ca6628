"""Attention maps: the attention probabilities of every layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitfast.errors import UserError
from vitfast.inference.shallow_copy import shallow_copy
from vitfast.layers import Attention, GatedPositionalAttention

Head = Literal["mean"] | int | None

_LAYERS = (Attention, GatedPositionalAttention)


@torch.no_grad()
def attention_maps(model: nn.Module, images: Tensor, *, head: Head = None) -> list[Tensor]:
    """Computes the attention probabilities of every layer.

    Fused kernels do not store them; here they also return their logits. A layer of ConViT gives its blend of content
    and position, a layer of a DVT includes the relations that it reuses. See ``forward_with_maps``.

    Args:
        model: a model of vitfast.
        images: model input, ``[B, in_chans, img_size, img_size]``.
        head: None for every head, ``"mean"`` for their mean, or the index of a head, from 0. The other heads are
            dropped layer by layer to save memory.

    Returns:
        For each layer ``[B, H, N, N]``, queries (rows) by keys (columns), rows sum to 1; H is 1 unless ``head`` is
        None. float32, or float64 for a float64 model. N includes the prefix tokens; the first layers of a ConViT have
        none. A model with exits returns the layers exit by exit. The tokens-to-token module of a T2T-ViT is excluded.

    Raises:
        UserError: the model has no layer with attention maps, or ``head`` is invalid.
        TypeError: from the model.
        ValueError: from the model.
    """
    return forward_with_maps(model, images, head=head)[1]


def forward_with_maps(model: nn.Module, images: Tensor, *, head: Head = None) -> tuple[Any, list[Tensor]]:
    """Runs a model in evaluation mode and returns its result together with its ``attention_maps``.

    A shallow copy of the module tree runs, whose attention layers record their maps; it shares all tensors with the
    model. The model itself is never modified, so this is safe with exceptions and threads. Gradients flow through the
    result and the maps unless the caller disables them.

    Under autocast, and in a half-precision model, a map is the softmax of logits in that precision. For a model
    compiled by ``torch.compile`` the original runs. Arguments and errors are those of ``attention_maps``.
    """
    # torch.compile's wrapper holds the original as _orig_mod
    copy = shallow_copy(getattr(model, "_orig_mod", model), {})
    layers = attention_layers(copy)
    for layer in layers:
        if not (head is None or head == "mean" or (type(head) is int and 0 <= head < layer.num_heads)):
            heads = f"the heads of this model are 0 to {layer.num_heads - 1}"
            raise UserError(f"head={head!r} does not exist; {heads}, or use 'mean'")
    maps: list[Tensor] = []
    try:
        for layer in layers:
            layer.attend = _record_map(layer, head, maps)
        return copy(images), maps
    finally:
        for layer in layers:
            vars(layer).pop("attend", None)  # breaks a reference cycle that would keep the maps alive


def attention_layers(model: nn.Module) -> list[Attention | GatedPositionalAttention]:
    """Returns the layers that have attention maps, in execution order.

    Raises:
        UserError: there are none.
    """
    layers = [module for module in model.modules() if isinstance(module, _LAYERS)]
    if not layers:
        name = getattr(model, "model_name", type(model).__name__)
        raise UserError(
            f"{name} has no attention layer whose map can be read; pass a transformer of vitfast, "
            "and instead of an accelerated model its source"
        )
    return layers


def _record_map(layer: Attention | GatedPositionalAttention, head: Head, maps: list[Tensor]) -> Callable[..., Any]:
    """Wraps the attention operator of a layer to append its map to ``maps``."""
    operator = layer.attend

    def attend(*tensors: Tensor, return_logits: bool = False, **options: Any) -> Any:
        out, logits_BHNN = operator(*tensors, return_logits=True, **options)
        map_BHNN = logits_BHNN.softmax(-1, dtype=torch.promote_types(logits_BHNN.dtype, torch.float32))
        if isinstance(layer, GatedPositionalAttention):
            map_BHNN = layer.blend(map_BHNN)
        if head == "mean":
            map_BHNN = map_BHNN.mean(1, keepdim=True)
        elif head is not None:
            map_BHNN = map_BHNN[:, head, None].clone()  # a view would keep all heads in memory
        maps.append(map_BHNN)
        return (out, logits_BHNN) if return_logits else out

    return attend
