"""Parts that the transformer models share: blocks, initialization and resized position embeddings."""

from __future__ import annotations

import math

from torch import Tensor, nn

from vitfast.layers import Block, resize_position_embedding
from vitfast.layers.mlp import GeluVariant
from vitfast.layers.position_embedding import PositionInterpolation
from vitfast.models.model_fields import TransformerFields


def transformer_blocks(fields: TransformerFields, *, gelu: GeluVariant = "erf") -> nn.Sequential:
    """Builds ``fields.depth`` blocks; the stochastic depth rate grows from the first to the last."""
    return nn.Sequential(
        *(
            Block(
                fields.embed_dim,
                fields.num_heads,
                fields.mlp_dim,
                qkv_bias=fields.qkv_bias,
                layer_norm_eps=fields.layer_norm_eps,
                gelu=gelu,
                drop_rate=fields.drop_rate,
                attention_drop_rate=fields.attention_drop_rate,
                drop_path=fields.drop_path_of(index),
            )
            for index in range(fields.depth)
        )
    )


def initialize_linear(*modules: nn.Module) -> None:
    """Initializes linear layers as timm's ViT does: truncated normal with standard deviation 0.02, zero bias."""
    for module in modules:
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def resize_positions(
    state: dict[str, Tensor],
    key: str,
    positions: Tensor,
    interpolation: PositionInterpolation,
    *,
    num_prefix_tokens: int = 1,
) -> list[str]:
    """Resamples ``state[key]`` in place to the grid of a model's position embeddings.

    Args:
        state: saved weights.
        key: of the position embeddings, ``[1, T + g * g, C]``.
        positions: the model's, ``[1, T + G * G, C]``.
        interpolation: see ``resize_position_embedding``.
        num_prefix_tokens: T, tokens before the patches.

    Returns:
        The key in a list if it was resized; an empty list if the shapes are equal or the weights are of another
        architecture.
    """
    saved = state.get(key)
    if saved is None or saved.shape == positions.shape:
        return []
    if saved.dim() != 3 or saved.shape[::2] != positions.shape[::2]:
        return []
    grid_size = math.isqrt(positions.shape[1] - num_prefix_tokens)
    try:
        state[key] = resize_position_embedding(
            saved, grid_size, num_prefix_tokens=num_prefix_tokens, interpolation=interpolation
        )
    except ValueError:  # the number of patches is not square
        return []
    return [key]
