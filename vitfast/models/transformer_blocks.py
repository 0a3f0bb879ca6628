"""The stack of blocks that plain transformers share."""

from __future__ import annotations

from torch import nn

from vitfast.layers import Block
from vitfast.layers.mlp import GeluVariant
from vitfast.models.transformer_fields import TransformerFields


def transformer_blocks(fields: TransformerFields, *, gelu: GeluVariant = "erf") -> nn.Sequential:
    """Builds ``fields.depth`` blocks, with stochastic depth that grows from the first to the last."""
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
