"""Parts that the transformer models share: blocks and initialization."""

from __future__ import annotations

from torch import nn

from vitfast.layers import Block
from vitfast.layers.mlp import GeluVariant
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
