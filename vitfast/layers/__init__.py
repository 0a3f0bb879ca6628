"""The layers of vitfast's models, on the operators of ``vitfast.ops``.

Shapes in names and comments: B batch, N tokens, C channels, H heads, D head dimension, P patch size.
"""

from vitfast.layers.attention import Attention
from vitfast.layers.block import Block
from vitfast.layers.conv_stem import ConvStem
from vitfast.layers.drop_path import DropPath
from vitfast.layers.gated_positional_attention import GatedPositionalAttention
from vitfast.layers.grid_upsample import GridUpsample
from vitfast.layers.hybrid_embed import HybridEmbed
from vitfast.layers.layer_norm import LayerNorm
from vitfast.layers.mlp import Mlp
from vitfast.layers.mlp_head import MlpHead
from vitfast.layers.patch_embed import PaddedPatchEmbed, PatchEmbed
from vitfast.layers.position_embedding import resize_position_embedding, sinusoidal_positions
from vitfast.layers.relation_reuse import RelationReuse
from vitfast.layers.resnet import Bottleneck, ResNet
from vitfast.layers.reuse_block import FeatureReuse, ReuseBlock
from vitfast.layers.std_conv import ResNetConventions, StdConv2d
from vitfast.layers.stored_result import AddPositions, JoinTokens, ResidualAdd, StoredFeatures, StoredResult
from vitfast.layers.swav_head import SwavHead
from vitfast.layers.tokens_to_token import TokensToToken

__all__ = [
    "AddPositions",
    "Attention",
    "Block",
    "Bottleneck",
    "ConvStem",
    "DropPath",
    "FeatureReuse",
    "GatedPositionalAttention",
    "GridUpsample",
    "HybridEmbed",
    "JoinTokens",
    "LayerNorm",
    "Mlp",
    "MlpHead",
    "PaddedPatchEmbed",
    "PatchEmbed",
    "RelationReuse",
    "ResNet",
    "ResNetConventions",
    "ResidualAdd",
    "ReuseBlock",
    "StdConv2d",
    "StoredFeatures",
    "StoredResult",
    "SwavHead",
    "TokensToToken",
    "resize_position_embedding",
    "sinusoidal_positions",
]
