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

Precision = Literal["fp32", "bf16", "fp16", "fp16_32", "int8"]
# device type -> supported precisions
PRECISIONS: dict[str, tuple[Precision, ...]] = {
    "cpu": ("fp32", "bf16", "fp16_32", "int8"),
    "cuda": ("fp32", "bf16", "fp16", "fp16_32"),
}
Activation = Literal["none", "gelu", "gelu_tanh", "gelu_quick", "tanh", "silu", "relu"]
Pooling = Literal["token", "mean", "token_and_mean", "all", "map"]
Combine = Literal["one", "mean", "each"]
Resize = Literal["no", "bicubic", "bicubic_antialias"]


@dataclass(frozen=True, eq=False)
class LinearSpec:
    """A linear layer, or several with the same input, concatenated along the output dimension.

    Attributes:
        weights: each ``[O_i, ...]``, flattened to ``[O_i, K]``.
        biases: each ``[O_i]`` or None.
        precision: precision of a quantized source layer; None: the precision passed to ``accelerate``.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]
    precision: Precision | None = None

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
    """A LayerNorm over the last dimension; weight and bias are ``[C]``, or None for ones and zeros."""

    weight: Tensor | None
    bias: Tensor | None
    eps: float
    precision: Precision | None = None


@dataclass(frozen=True, eq=False)
class PatchesSpec:
    """Non-overlapping patches, each projected to a token.

    Attributes:
        linear: ``[C, in_chans * P * P]``.
        image_size: height and width of the images.
        patch_size: height and width of a patch.
        in_chans: image channels.
        order: column order of the weight: (channel, row, column) or (row, column, channel).
        padding: zeros to the left, right, above and below; negative values crop.
        norm: applied after the projection, or None.
    """

    linear: LinearSpec
    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    in_chans: int
    order: PatchOrder = "channels_first"
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    norm: NormSpec | None = None


@dataclass(frozen=True, eq=False)
class SplitSpec:
    """Overlapping square patches of an image or of a grid of tokens."""

    patch_size: int
    stride: int
    padding: int


@dataclass(frozen=True, eq=False)
class TokenMixerSpec:
    """An attention layer of the tokens-to-token module: single-head softmax attention or a performer.

    Attributes:
        norm1: before the attention.
        linear: rows are q, k, v; for a performer k, q, v.
        projection: random features ``[M, D]`` of a performer; None: softmax attention.
        scale: factor on the logits of softmax attention.
        proj: output projection of the attention.
        norm2: before the MLP.
        mlp: the MLP.
    """

    norm1: NormSpec
    linear: LinearSpec
    projection: Tensor | None
    scale: float
    proj: LinearSpec
    norm2: NormSpec
    mlp: MlpSpec


@dataclass(frozen=True, eq=False)
class TokensToTokenSpec:
    """Tokens-to-token module (Yuan et al., 2021): a mixer after each of the first two splits, then a projection."""

    splits: tuple[SplitSpec, SplitSpec, SplitSpec]
    mixers: tuple[TokenMixerSpec, TokenMixerSpec]
    project: LinearSpec
    image_size: tuple[int, int]
    in_chans: int


@dataclass(frozen=True, eq=False)
class ConvSpec:
    """A convolution, optionally followed by BatchNorm in evaluation mode and ReLU.

    Attributes:
        weight: ``[O, I, height, width]``.
        bias: ``[O]`` or None.
        stride: in both directions.
        padding: zeros on each side.
        batch_norm: weight, bias, running mean and running variance, each ``[O]``, and epsilon; or None.
        relu: whether ReLU follows.
    """

    weight: Tensor
    bias: Tensor | None
    stride: int
    padding: int
    batch_norm: tuple[Tensor, Tensor, Tensor, Tensor, float] | None
    relu: bool


@dataclass(frozen=True, eq=False)
class ConvStemSpec:
    """Tokens from a sequence of convolutions; the channels of the last one are the tokens' channels."""

    convolutions: tuple[ConvSpec, ...]
    image_size: tuple[int, int]
    in_chans: int


@dataclass(frozen=True, eq=False)
class EmbeddingSpec:
    """From images to the tokens that enter the first block.

    Attributes:
        patches: how patches become tokens.
        prefix: tokens before the patches (class, distillation, registers), each ``[1, t, C]``.
        positions: ``[1, T' + N, C]`` for the first T' prefix tokens and all patches, or None.
        pre_norm: applied to all tokens before the first block, or None.
        resize: how positions are resized for images of a size other than ``patches.image_size``; ``"no"``: such images
            are rejected.
    """

    patches: PatchesSpec | TokensToTokenSpec | ConvStemSpec
    prefix: tuple[Tensor, ...]
    positions: Tensor | None
    pre_norm: NormSpec | None = None
    resize: Resize = "no"


@dataclass(frozen=True, eq=False)
class GatedPositionsSpec:
    """Positional part of ConViT's attention, ``(1 - g) content + g positional`` (d'Ascoli et al., 2021).

    ``weight`` and ``bias`` are ``pos_proj``'s; g is the sigmoid of ``gating_param`` ``[H]``.
    """

    weight: Tensor
    bias: Tensor
    gating_param: Tensor


@dataclass(frozen=True, eq=False)
class AttentionSpec:
    """Multi-head self-attention.

    Attributes:
        qkv: rows are q, k, v, each ``heads * head_dim``.
        heads: number of heads.
        head_dim: channels of a head.
        scale: factor on the logits.
        proj: output projection.
        q_norm: LayerNorm of q within each head, or None.
        k_norm: LayerNorm of k within each head, or None.
        gated: ConViT's positional attention, or None.
    """

    qkv: LinearSpec
    heads: int
    head_dim: int
    scale: float
    proj: LinearSpec
    q_norm: NormSpec | None = None
    k_norm: NormSpec | None = None
    gated: GatedPositionsSpec | None = None


@dataclass(frozen=True, eq=False)
class MlpSpec:
    """``fc2(activation(fc1(x)))``."""

    fc1: LinearSpec
    activation: Activation
    fc2: LinearSpec


@dataclass(frozen=True, eq=False)
class FeatureReuseSpec:
    """What a DVT block takes from the previous exit's features: LayerNorm, MLP and upsampling.

    Attributes:
        norm: applied to the features.
        mlp: reduces their channels.
        upsample: ``[1 + G * G, 1 + g * g]``, from the previous exit's grid to this one's.
    """

    norm: NormSpec
    mlp: MlpSpec
    upsample: Tensor


@dataclass(frozen=True, eq=False)
class BlockSpec:
    """A pre-norm transformer block: ``x += scale1 * attention(norm1(x)); x += scale2 * mlp(norm2(x))``.

    Attributes:
        name: name of the source module.
        norm1: before the attention.
        attention: the attention.
        norm2: before the MLP.
        mlp: the MLP.
        scale1: LayerScale ``[C]`` of the attention, or None.
        scale2: LayerScale of the MLP, or None.
        feature_reuse: features concatenated with x before ``norm2`` in a DVT, or None.
    """

    name: str
    norm1: NormSpec
    attention: AttentionSpec
    norm2: NormSpec
    mlp: MlpSpec
    scale1: Tensor | None = None
    scale2: Tensor | None = None
    feature_reuse: FeatureReuseSpec | None = None


@dataclass(frozen=True, eq=False)
class FallbackSpec:
    """A source module that was not recognised and runs the source's code.

    Attributes:
        name: name of the source module.
        module: the source module.
        why: what was not recognised.
    """

    name: str
    module: nn.Module
    why: str


@dataclass(frozen=True, eq=False)
class MapPoolSpec:
    """Attention pooling with learned queries (SigLIP's head).

    Attributes:
        latent: the queries ``[1, L, C]``.
        q: projection of the queries, or None.
        kv: projection of the tokens; rows are k, v.
        heads: number of heads.
        scale: factor on the logits.
        proj: output projection.
        norm: before the MLP, or None.
        mlp: added to the projected result.
        q_norm: LayerNorm of q within each head, or None.
        k_norm: LayerNorm of k within each head, or None.
        mean: return the mean over the L results; else the first one.
    """

    latent: Tensor
    q: LinearSpec | None
    kv: LinearSpec
    heads: int
    scale: float
    proj: LinearSpec
    norm: NormSpec | None
    mlp: MlpSpec
    q_norm: NormSpec | None = None
    k_norm: NormSpec | None = None
    mean: bool = False


@dataclass(frozen=True, eq=False)
class ReadoutSpec:
    """From the tokens after the final norm to one output.

    Attributes:
        pooling: ``"token"`` number ``index``; ``"mean"`` of the tokens from ``index`` on; ``"token_and_mean"``: token 0
            concatenated with that mean; ``"all"`` tokens; ``"map"``.
        index: see ``pooling``.
        norm: applied to the pooled tokens, or None.
        layers: linear layers, each with the activation after it; empty for a model without head.
        map_pool: for ``"map"``; pools the tokens from ``index`` on.
    """

    pooling: Pooling
    index: int
    norm: NormSpec | None
    layers: tuple[tuple[LinearSpec, Activation], ...]
    map_pool: MapPoolSpec | None = None


@dataclass(frozen=True, eq=False)
class TransformerSpec:
    """A Vision Transformer.

    Attributes:
        embedding: from images to tokens.
        blocks: in order.
        norm: applied to all tokens after the last block, or None.
        readouts: outputs, at least one.
        combine: return ``"one"`` readout, the ``"mean"`` of all, or ``"each"`` in a tuple.
        late_prefix: tokens inserted before block ``late_index`` (ConViT's class token).
        late_index: see ``late_prefix``.
    """

    embedding: EmbeddingSpec
    blocks: tuple[BlockSpec | FallbackSpec, ...]
    norm: NormSpec | None
    readouts: tuple[ReadoutSpec, ...]
    combine: Combine = "one"
    late_prefix: tuple[Tensor, ...] = ()
    late_index: int = 0


@dataclass(frozen=True, eq=False)
class RelationReuseSpec:
    """MLP that maps the attention logits of all layers and heads of one exit to biases for the next exit.

    Attributes:
        fc1: ``[3 L H, L H]`` for L layers.
        fc2: ``[L H, 3 L H]``.
        layers: number of layers L.
        upsample: ``[1 + G * G, 1 + g * g]``, from the previous exit's grid to this one's.
    """

    fc1: LinearSpec
    fc2: LinearSpec
    layers: int
    upsample: Tensor


@dataclass(frozen=True, eq=False)
class ExitSpec:
    """One transformer of a Dynamic Vision Transformer, and how it reuses the previous exit's attention logits."""

    transformer: TransformerSpec
    relation_reuse: RelationReuseSpec | None


@dataclass(frozen=True, eq=False)
class CascadeSpec:
    """A Dynamic Vision Transformer (Wang et al., 2021).

    Attributes:
        exits: in order.
        feature_reuse: whether exits pass their features to the next exit.
        relation_reuse: whether exits pass their attention logits to the next exit.
    """

    exits: tuple[ExitSpec, ...]
    feature_reuse: bool
    relation_reuse: bool


ModelSpec = TransformerSpec | CascadeSpec
