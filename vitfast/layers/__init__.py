"""The parts that models are built from: one concept per file, calling ``vitfast.ops``.

Shapes in names and comments: B batch, N tokens, C channels, H heads, D head dimension, P patch size.
"""

from vitfast.layers.attention import Attention
from vitfast.layers.block import Block
from vitfast.layers.drop_path import DropPath
from vitfast.layers.gated_positional_attention import GatedPositionalAttention
from vitfast.layers.layer_norm import LayerNorm
from vitfast.layers.mlp import Mlp
from vitfast.layers.mlp_head import MlpHead
from vitfast.layers.patch_embed import PatchEmbed
from vitfast.layers.position_embedding import resize_position_embedding
from vitfast.layers.swav_head import SwavHead

__all__ = [
    "Attention",
    "Block",
    "DropPath",
    "GatedPositionalAttention",
    "LayerNorm",
    "Mlp",
    "MlpHead",
    "PatchEmbed",
    "SwavHead",
    "resize_position_embedding",
]
