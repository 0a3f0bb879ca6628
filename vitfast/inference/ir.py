"""Intermediate representation (IR) of a Vision Transformer's evaluation forward pass, independent of its library.

``vitfast.inference.lowering`` converts a model to a ``ModelSpec``; ``vitfast.inference.backend`` builds modules
from it. A spec refers to the source model's tensors without copying them, so it is valid while the source is unchanged.

Shapes: B batch, N tokens, C channels, H heads, D head dimension, P patch size, K inputs and O outputs of a layer,
G and g tokens along a side of a fine and a coarse grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from vitfast.layers.patch_embed import PatchOrder
from vitfast.layers.rotary import Coordinates

Precision = Literal["fp32", "bf16", "fp16", "fp16_32", "fp16_16", "int8", "fp8"]
# device type -> supported precisions
PRECISIONS: dict[str, tuple[Precision, ...]] = {
    "cpu": ("fp32", "bf16", "fp16_32", "int8"),
    "cuda": ("fp32", "bf16", "fp16", "fp16_32", "fp16_16", "int8", "fp8"),
}
Activation = Literal["none", "gelu", "gelu_tanh", "gelu_quick", "tanh", "silu", "relu"]
Pooling = Literal["token", "mean", "token_and_mean", "all", "patches", "grid", "map"]
Resize = Literal["no", "bicubic", "bicubic_antialias"]


@dataclass(frozen=True, eq=False)
class LinearSpec:
    """A linear layer, or several with the same input, concatenated along the output dimension."""

    weights: tuple[Tensor, ...]  # each [O_i, ...], flattened to [O_i, K]
    biases: tuple[Tensor | None, ...]  # each [O_i]; if none is None, other parts of [O] as well
    precision: Precision | None = None  # of a quantized source layer; None: the precision passed to ``accelerate``

    @property
    def out_features(self) -> int:
        """Total number of outputs O."""
        return sum(weight.shape[0] for weight in self.weights)

    @property
    def in_features(self) -> int:
        """Number of inputs K."""
        return self.weights[0][0].numel()


@dataclass(frozen=True, eq=False)
class NormSpec:
    """A LayerNorm over the last dimension, or an RMSNorm, which subtracts no mean and has no bias."""

    weight: Tensor | None  # [C]; None: ones
    bias: Tensor | None  # [C]; None: zeros
    eps: float
    precision: Precision | None = None  # as in LinearSpec
    is_rms: bool = False


@dataclass(frozen=True, eq=False)
class MlpSpec:
    """``fc2(norm(activation(fc1(x))))``, or with a gate ``fc2(norm(activation(g) * h))`` with ``fc1(x)`` = g and h."""

    fc1: LinearSpec  # with a gate it has twice as many rows as ``fc2`` has columns
    activation: Activation
    fc2: LinearSpec
    gate: Literal["first", "last"] | None = None  # which half of the rows of ``fc1`` is the gate g
    norm: NormSpec | None = None


@dataclass(frozen=True, eq=False)
class PatchesSpec:
    """Non-overlapping patches, each projected to a token."""

    linear: LinearSpec  # [C, in_chans * P * P]
    image_size: tuple[int, int]  # height and width
    patch_size: tuple[int, int]
    in_chans: int
    order: PatchOrder = "channels_first"  # columns of the weight: (channel, row, column) or (row, column, channel)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)  # zeros left, right, above and below; negative values crop
    norm: NormSpec | None = None  # after the projection


@dataclass(frozen=True, eq=False)
class SplitSpec:
    """Overlapping square patches of an image or of a grid of tokens."""

    patch_size: int
    stride: int
    padding: int


@dataclass(frozen=True, eq=False)
class TokenMixerSpec:
    """An attention layer of the tokens-to-token module: single-head softmax attention or a performer."""

    norm1: NormSpec
    linear: LinearSpec  # rows are q, k, v; for a performer k, q, v
    projection: Tensor | None  # random features [M, D] of a performer; None: softmax attention
    scale: float  # factor on the logits of softmax attention
    proj: LinearSpec
    norm2: NormSpec
    mlp: MlpSpec


@dataclass(frozen=True, eq=False)
class TokensToTokenSpec:
    """Tokens-to-token module (Yuan et al., 2021): a mixer after each of the first two splits, then a projection."""

    splits: tuple[SplitSpec, ...]  # three
    mixers: tuple[TokenMixerSpec, ...]  # two
    project: LinearSpec
    image_size: tuple[int, int]
    in_chans: int


@dataclass(frozen=True, eq=False)
class ConvStemSpec:
    """Tokens from convolutions; the channels of the last one are the tokens' channels."""

    layers: nn.Sequential  # copies, BatchNorm folded into the convolutions
    image_size: tuple[int, int]
    in_chans: int


@dataclass(frozen=True, eq=False)
class EmbeddingSpec:
    """From images to the tokens that enter the first block."""

    patches: PatchesSpec | TokensToTokenSpec | ConvStemSpec
    prefix: tuple[Tensor, ...]  # tokens before the patches (class, distillation, registers), each [1, t, C]
    positions: Tensor | None  # [1, T' + N, C] for the first T' prefix tokens and all patches
    pre_norm: NormSpec | None = None  # of all tokens before the first block
    resize: Resize = "no"  # of positions, for images of another size than the patches'; "no": these are rejected


@dataclass(frozen=True, eq=False)
class RotarySpec:
    """Rotary position embedding of the patches' q and k; ``vitfast.layers.rotary`` explains the fields."""

    frequencies: Tensor  # [H or 1, 2, D / 2]
    coordinates: Coordinates
    is_interleaved: bool
    offset: float = 0.0
    reference: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class RelativeBiasSpec:
    """Biases on the logits that depend on the offset of two tokens on a grid of ``size`` rows and columns."""

    # [(2 rows - 1) * (2 columns - 1), H], and with a class token three more rows: of its logits with the patches, of
    # the patches' with it, and of its own
    table: Tensor
    size: tuple[int, int]
    has_class_token: bool = False


@dataclass(frozen=True, eq=False)
class QueryBiasSpec:
    """Biases that depend on the query and on the offset of the key's row and column (SAM; MViTv2: Li et al., 2022)."""

    rows: Tensor  # [2 rows - 1, D] for a grid of so many rows; resized linearly to others
    columns: Tensor  # [2 columns - 1, D]


@dataclass(frozen=True, eq=False)
class WindowSpec:
    """Windows on the grid of tokens, which attend among themselves (Swin Transformer: Liu et al., 2021)."""

    size: tuple[int, int]
    shift: tuple[int, int] = (0, 0)
    pads_first: bool = False  # whether the zeros that complete the windows are added before the shift, else after it
    shifts_small_grids: bool = True  # also if a side of the grid is not longer than a window


@dataclass(frozen=True, eq=False)
class AttentionSpec:
    """Multi-head self-attention of all tokens, or within windows."""

    qkv: LinearSpec  # rows are q, k, v, each heads * head_dim
    heads: int
    head_dim: int
    scale: float  # factor on the logits
    proj: LinearSpec
    q_norm: NormSpec | None = None  # of q within each head
    k_norm: NormSpec | None = None
    norm: NormSpec | None = None  # of the result, before the output projection
    has_joint_norms: bool = False  # whether q_norm and k_norm are over the channels of all heads
    # ConViT (d'Ascoli et al., 2021), (1 - g) content + g positional: weight and bias of ``pos_proj``, and
    # ``gating_param`` [H], whose sigmoid is g
    gated: tuple[Tensor, Tensor, Tensor] | None = None
    bias: RelativeBiasSpec | QueryBiasSpec | None = None
    windows: WindowSpec | None = None
    cosine: Tensor | None = None  # factors [H] on the cosines of q and k, which are the logits (Swin V2); scale is 1


@dataclass(frozen=True, eq=False)
class ReuseSpec:
    """What a DVT's exit takes from the previous exit, features or attention logits: LayerNorm, MLP and upsampling."""

    norm: NormSpec | None
    mlp: MlpSpec  # of features: reduces their channels; of logits: over the L * H channels of all layers and heads
    upsample: Tensor  # [1 + G * G, 1 + g * g], from the previous exit's grid to this one's


@dataclass(frozen=True, eq=False)
class BlockSpec:
    """A pre-norm transformer block: ``x += scale1 * attention(norm1(x)); x += scale2 * mlp(norm2(x))``.

    With ``is_post_norm``: ``x += norm1(attention(x)); x += norm2(mlp(x))``. With ``parallel``, the attention of several
    blocks reads the same x and their results are added, and then their MLPs do.
    """

    name: str  # of the source module
    norm1: NormSpec
    attention: AttentionSpec
    norm2: NormSpec
    mlp: MlpSpec
    scale1: Tensor | None = None  # LayerScale [C]
    scale2: Tensor | None = None
    feature_reuse: ReuseSpec | None = None  # features concatenated with x before norm2 in a DVT
    is_post_norm: bool = False
    parallel: tuple[BlockSpec, ...] = ()  # pre-norm blocks beside this one


@dataclass(frozen=True, eq=False)
class MergeSpec:
    """Merges 2 x 2 patches to one, between the stages of a Swin Transformer."""

    name: str  # of the source module
    norm: NormSpec | None  # before the layer
    linear: LinearSpec  # columns: (column, row, channel) of the patches
    norm_after: NormSpec | None = None


@dataclass(frozen=True, eq=False)
class FallbackSpec:
    """A source module that was not recognised and runs the source's code."""

    name: str  # of the source module
    module: nn.Module
    why: str  # what was not recognised


@dataclass(frozen=True, eq=False)
class MapPoolSpec:
    """Attention pooling with learned queries (SigLIP's head)."""

    latent: Tensor  # the queries [1, L, C]
    q: LinearSpec | None  # projection of the queries
    kv: LinearSpec  # of the tokens; rows are k, v
    heads: int
    scale: float  # factor on the logits
    proj: LinearSpec
    norm: NormSpec | None  # before the MLP
    mlp: MlpSpec  # added to the projected result
    q_norm: NormSpec | None = None  # of q within each head
    k_norm: NormSpec | None = None
    mean: bool = False  # return the mean over the L results; else the first one


@dataclass(frozen=True, eq=False)
class ReadoutSpec:
    """From the tokens after the final norm, or those of a hidden state, to one output."""

    # "token" number ``index``; "mean" of the tokens from ``index`` on; "token_and_mean": token 0 concatenated with that
    # mean; "all" tokens; "patches": the tokens from ``index`` on, "grid": the same as [B, C, H, W]; "map": ``map_pool``
    # of the tokens from ``index`` on
    pooling: Pooling
    index: int = 0
    norm: NormSpec | None = None  # of the pooled tokens
    layers: tuple[tuple[LinearSpec, Activation], ...] = ()  # each with the activation after it
    map_pool: MapPoolSpec | None = None
    is_projected: bool = False  # whether ``layers`` are a projection that belongs to the embedding, no classifier
    state: int = (
        -1
    )  # the tokens that are read: 0 those before the first block, i after the i-th, -1 after the final norm


@dataclass(frozen=True, eq=False)
class OutputSpec:
    """The output class of a model of transformers."""

    module: str  # that defines the class
    name: str
    fields: tuple[str, ...]  # in the order of the readouts; those in ``tuples`` collect several
    resizes_always: bool = False  # whether positions are resized without the option interpolate_pos_encoding
    tuples: tuple[str, ...] = ()
    # with output_hidden_states: indices of the hidden states that are returned (none: all), and names of the fields
    # that hold them as [B, C, H, W]; ``hidden_states`` holds them as [B, N, C], unless it is among these
    states: tuple[int, ...] = ()
    grids: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class TransformerSpec:
    """A Vision Transformer, or one exit of a Dynamic Vision Transformer."""

    embedding: EmbeddingSpec
    blocks: tuple[BlockSpec | FallbackSpec | MergeSpec, ...]
    norm: NormSpec | None  # of all tokens after the last block
    readouts: tuple[ReadoutSpec, ...]  # at least one
    takes_mean: bool = False  # whether the output is the mean of two readouts
    neck: nn.Module | None = None  # in place of ``norm``: convolutions of the tokens as [B, C, H, W], which are copied
    # hidden states that are features of a stage: 0 before the first block, i after the i-th; none: after each block
    stages: tuple[int, ...] = ()
    rotary: tuple[RotarySpec, ...] = ()  # one of all blocks, or one of each; then no block is a ``FallbackSpec``
    late_prefix: tuple[Tensor, ...] = ()  # tokens inserted before block ``late_index`` (ConViT's class token)
    late_index: int = 0
    relation_reuse: ReuseSpec | None = None  # from the previous exit's attention logits to biases on this exit's
    output: OutputSpec | None = None  # None: a tensor for each readout
    merge_tokens: int = 0  # tokens that each block merges with others


@dataclass(frozen=True, eq=False)
class CascadeSpec:
    """A Dynamic Vision Transformer (Wang et al., 2021)."""

    exits: tuple[TransformerSpec, ...]
    feature_reuse: bool  # whether exits pass their features to the next exit
    relation_reuse: bool  # whether exits pass their attention logits to the next exit


@dataclass(frozen=True, eq=False)
class SequenceSpec:
    """A Vision Transformer of sequences of patches of different lengths, each with a grid of its own (NaFlex)."""

    linear: LinearSpec  # of flattened patches
    blocks: tuple[BlockSpec, ...]
    norm: NormSpec | None  # of all tokens after the last block
    readouts: tuple[ReadoutSpec, ...]
    prefix: tuple[Tensor, ...] = ()  # tokens before the patches, each [1, t, C]
    # [rows, columns, C], resized to the grid of each image with antialiasing; or [rows, C] and [columns, C], each
    # resized linearly and added; or none
    positions: tuple[Tensor, ...] = ()
    resize: Literal["bilinear", "bicubic"] = "bilinear"  # of the former
    keeps_aspect: bool = False  # whether they are resized to a square with the grid's longer side, and cropped
    patch_norm: NormSpec | None = None  # after the projection
    pre_norm: NormSpec | None = None  # of all tokens before the first block
    patch_size: tuple[int, int] = (0, 0)  # for models that also take images
    is_channels_last: bool = True  # columns of the weight: (row, column, channel), else (channel, row, column)
    output: OutputSpec | None = None


ModelSpec = TransformerSpec | CascadeSpec | SequenceSpec
