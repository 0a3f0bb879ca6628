"""The attention maps of a model: who looks at whom, in every layer."""

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
    """Computes the attention probabilities of every layer, those that weigh the values.

    Fused kernels never hold them as a whole; here the kernels are asked for their logits, too. A layer of ConViT gives
    its blend of content and position; one of a DVT starts from the relations that it reuses. See ``forward_with_maps``.

    Args:
        model: a model of vitfast.
        images: as the model takes them, ``[B, in_chans, img_size, img_size]``.
        head: None for every head, ``"mean"`` for their mean, or the number of one of them, from 0. What is not wanted
            is dropped layer by layer, so that it takes no memory.

    Returns:
        For each layer ``[B, H, N, N]``, from queries (rows) to keys (columns), rows that sum to 1; H is 1 unless
        ``head`` is None. In float32, or in float64 for such a model. N includes the tokens before the patches; the
        first layers of a ConViT have none. The layers of a model with exits come exit by exit. The tokens-to-token
        module of a T2T-ViT, which makes the tokens, is not among the layers.

    Raises:
        UserError: the model has no layer whose map can be read, or ``head`` is not allowed.
        TypeError: as the model raises.
        ValueError: as the model raises.
    """
    return forward_with_maps(model, images, head=head)[1]


def forward_with_maps(model: nn.Module, images: Tensor, *, head: Head = None) -> tuple[Any, list[Tensor]]:
    """Runs a model in evaluation and returns what it returns together with its ``attention_maps``.

    The model itself is neither changed nor slowed down, whatever happens meanwhile in this thread or another: a second
    tree of modules is made, which shares every tensor with it, and whose attention layers keep their maps. Gradients
    flow through the result and the maps, unless the caller switches them off.

    Under autocast, and in a model of half precision, a map is the softmax of logits in that precision.

    Args:
        model: as in ``attention_maps``. Of one compiled by ``torch.compile`` the original runs.
        images: as in ``attention_maps``.
        head: as in ``attention_maps``.

    Returns:
        The model's result, and the maps as ``attention_maps`` returns them.

    Raises:
        UserError: as ``attention_maps``.
        TypeError: as the model raises.
        ValueError: as the model raises.
    """
    twin = shallow_copy(
        getattr(model, "_orig_mod", model), {}
    )  # torch.compile's wrapper holds the original under this name
    layers = attention_layers(twin)
    for layer in layers:
        _check_head(head, layer.num_heads)
    maps: list[Tensor] = []
    try:
        for layer in layers:
            layer.attend = _keeping(layer, head, maps)
        return twin(images), maps
    finally:
        for layer in layers:
            vars(layer).pop(
                "attend", None
            )  # a circle of references: it would keep the maps until Python looks for circles


def attention_layers(model: nn.Module) -> list[Attention | GatedPositionalAttention]:
    """Returns the layers that have attention maps, in the order in which they run.

    Raises:
        UserError: there is none.
    """
    layers = [module for module in model.modules() if isinstance(module, _LAYERS)]
    if not layers:
        name = getattr(model, "model_name", type(model).__name__)
        raise UserError(
            f"{name} has no attention layer whose map can be read; take a transformer of vitfast, "
            "and of an accelerated one its source"
        )
    return layers


def _check_head(head: Head, num_heads: int) -> None:
    if head is None or head == "mean" or (type(head) is int and 0 <= head < num_heads):
        return
    raise UserError(f"head={head!r} is not there; the heads of this model are 0 to {num_heads - 1}, or take 'mean'")


def _keeping(layer: Attention | GatedPositionalAttention, head: Head, maps: list[Tensor]) -> Callable[..., Any]:
    """Returns the operator of a layer, as it is but for the map that it appends to ``maps``."""
    operator = layer.attend

    def attend(*tensors: Tensor, return_logits: bool = False, **options: Any) -> Any:
        out, logits_BHNN = operator(*tensors, return_logits=True, **options)
        map_BHNN = logits_BHNN.softmax(-1, dtype=torch.promote_types(logits_BHNN.dtype, torch.float32))
        if isinstance(layer, GatedPositionalAttention):
            map_BHNN = layer.blend(map_BHNN)
        if head == "mean":
            map_BHNN = map_BHNN.mean(1, keepdim=True)
        elif head is not None:
            map_BHNN = map_BHNN[:, head, None].clone()  # a view would keep the others
        maps.append(map_BHNN)
        return (out, logits_BHNN) if return_logits else out

    return attend
