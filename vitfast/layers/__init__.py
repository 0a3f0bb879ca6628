"""The layers of vitfast's models, on the operators of ``vitfast.ops``.

Shapes in names and comments: B batch, N tokens, C channels, H heads, D head dimension, P patch size.
"""

from vitfast.layers.attention import Attention as Attention
from vitfast.layers.attention_pool import AttentionPool as AttentionPool
from vitfast.layers.block import Block as Block
from vitfast.layers.conv_stem import ConvStem as ConvStem
from vitfast.layers.drop_path import DropPath as DropPath
from vitfast.layers.gated_positional_attention import GatedPositionalAttention as GatedPositionalAttention
from vitfast.layers.grid_upsample import GridUpsample as GridUpsample
from vitfast.layers.hybrid_embed import HybridEmbed as HybridEmbed
from vitfast.layers.layer_norm import LayerNorm as LayerNorm
from vitfast.layers.layer_scale import LayerScale as LayerScale
from vitfast.layers.mlp import GatedMlp as GatedMlp
from vitfast.layers.mlp import Mlp as Mlp
from vitfast.layers.mlp_head import MlpHead as MlpHead
from vitfast.layers.patch_embed import PaddedPatchEmbed as PaddedPatchEmbed
from vitfast.layers.patch_embed import PatchEmbed as PatchEmbed
from vitfast.layers.position_embedding import resize_position_embedding as resize_position_embedding
from vitfast.layers.position_embedding import sinusoidal_positions as sinusoidal_positions
from vitfast.layers.relation_reuse import RelationReuse as RelationReuse
from vitfast.layers.resnet import Bottleneck as Bottleneck
from vitfast.layers.resnet import ResNet as ResNet
from vitfast.layers.reuse_block import FeatureReuse as FeatureReuse
from vitfast.layers.reuse_block import ReuseBlock as ReuseBlock
from vitfast.layers.std_conv import ResNetConventions as ResNetConventions
from vitfast.layers.std_conv import StdConv2d as StdConv2d
from vitfast.layers.stored_result import AddPositions as AddPositions
from vitfast.layers.stored_result import JoinTokens as JoinTokens
from vitfast.layers.stored_result import ResidualAdd as ResidualAdd
from vitfast.layers.stored_result import StoredFeatures as StoredFeatures
from vitfast.layers.stored_result import StoredResult as StoredResult
from vitfast.layers.swav_head import SwavHead as SwavHead
from vitfast.layers.tokens_to_token import TokensToToken as TokensToToken
