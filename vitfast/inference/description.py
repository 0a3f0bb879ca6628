"""What a Vision Transformer computes in evaluation, whoever's code it is: the same few parts, in other hands.

A description holds references to the source's own tensors, so it costs no memory and is valid as long as the source is
not changed. It is made by ``vitfast.inference.lowering`` and turned into modules that run by
``vitfast.inference.packed``.

Shapes: B batch, N tokens, C channels, H heads, D head dimension, P patch size, T tokens before the patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from vitfast.inference.stem_description import ConvStem, TokensToToken

Precision = Literal["fp32", "bf16", "fp16", "fp16_32", "int8"]
# type of device -> what accelerated models compute in there
PRECISIONS: dict[str, tuple[Precision, ...]] = {
    "cpu": ("fp32", "bf16", "fp16_32", "int8"),
    "cuda": ("fp32", "bf16", "fp16", "fp16_32"),
}
Activation = Literal["none", "gelu", "gelu_tanh", "gelu_quick", "tanh", "silu", "relu"]
PatchOrder = Literal["channels_first", "channels_last"]
Pooling = Literal["token", "mean", "token_and_mean", "all", "map"]
Combine = Literal["one", "mean", "each"]
Resize = Literal["no", "bicubic", "bicubic_antialias"]


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear layer, or several that read the same input, one below the other.

    Attributes:
        weights: each ``[O_i, ...]``, flattened ``[O_i, K]``.
        biases: each ``[O_i]`` or None.
        precision: what a quantized source computes in; None: as ``accelerate`` is asked to.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]
    precision: Precision | None = None

    @property
    def out_features(self) -> int:
        """Rows of all weights together."""
        return sum(weight.shape[0] for weight in self.weights)

    @property
    def in_features(self) -> int:
        """Columns K."""
        return self.weights[0][0].numel()


@dataclass(frozen=True, eq=False)
class Norm:
    """A LayerNorm over the last dimension.

    Attributes:
        weight: ``[C]``, or None for ones.
        bias: ``[C]``, or None for zeros.
        eps: added to the variance.
        precision: as in ``Linear``.
    """

    weight: Tensor | None
    bias: Tensor | None
    eps: float
    precision: Precision | None = None


@dataclass(frozen=True, eq=False)
class Patches:
    """Patches that do not overlap, each projected to a token.

    Attributes:
        linear: ``[C, in_chans * P * P]``.
        image_size: height and width that the model takes.
        patch_size: height and width.
        in_chans: channels of an image.
        order: of the columns of the weight: (channel, row, column) or (row, column, channel).
        padding: zeros left, right, above and below; negative where something is cut off.
        norm: after the projection, or None.
    """

    linear: Linear
    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    in_chans: int
    order: PatchOrder = "channels_first"
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    norm: Norm | None = None


@dataclass(frozen=True, eq=False)
class Embedding:
    """From images to the tokens that enter the first block.

    Attributes:
        patches: how patches become tokens.
        prefix: tokens before the patches, each ``[1, t, C]``: class, distillation, registers.
        positions: ``[1, T' + N, C]`` for the first T' of the prefix's tokens and all patches, or None.
        pre_norm: over all tokens, before the first block; or None.
        resize: how positions are adapted to images of another size than ``patches.image_size``; ``"no"``: there are
            none of another size.
    """

    patches: Patches | TokensToToken | ConvStem
    prefix: tuple[Tensor, ...]
    positions: Tensor | None
    pre_norm: Norm | None = None
    resize: Resize = "no"


@dataclass(frozen=True, eq=False)
class GatedPositions:
    """What ConViT's attention adds: ``(1 - g) content + g positional`` (d'Ascoli et al., 2021).

    Attributes:
        weight: of ``pos_proj``.
        bias: of ``pos_proj``.
        gating_param: ``[H]``.
    """

    weight: Tensor
    bias: Tensor
    gating_param: Tensor


@dataclass(frozen=True, eq=False)
class Attention:
    """Multi-head self-attention.

    Attributes:
        qkv: rows are q, k, v, each ``heads * head_dim``.
        heads: number of heads.
        head_dim: channels of a head.
        scale: factor of the logits.
        proj: the projection of the result.
        q_norm: LayerNorm of q within each head, or None.
        k_norm: of k, or None.
        gated: ConViT's attention by position, or None.
    """

    qkv: Linear
    heads: int
    head_dim: int
    scale: float
    proj: Linear
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    gated: GatedPositions | None = None


@dataclass(frozen=True, eq=False)
class Mlp:
    """``fc2(activation(fc1(x)))``."""

    fc1: Linear
    activation: Activation
    fc2: Linear


@dataclass(frozen=True, eq=False)
class FeatureReuse:
    """What a block of a Dynamic Vision Transformer takes from the features of the exit before.

    Attributes:
        norm: of the features.
        mlp: condenses them.
        upsample: ``[1 + G * G, 1 + g * g]``, between the grids of two exits.
    """

    norm: Norm
    mlp: Mlp
    upsample: Tensor


@dataclass(frozen=True, eq=False)
class Block:
    """A pre-norm transformer block: ``x += scale1 * attention(norm1(x)); x += scale2 * mlp(norm2(x))``.

    Attributes:
        name: of the source's module.
        norm1: before the attention.
        attention: the attention.
        norm2: before the MLP.
        mlp: the MLP.
        scale1: LayerScale ``[C]`` of the attention, or None.
        scale2: of the MLP, or None.
        feature_reuse: of a Dynamic Vision Transformer: what stands beside x before ``norm2``; or None.
    """

    name: str
    norm1: Norm
    attention: Attention
    norm2: Norm
    mlp: Mlp
    scale1: Tensor | None = None
    scale2: Tensor | None = None
    feature_reuse: FeatureReuse | None = None


@dataclass(frozen=True, eq=False)
class OwnForward:
    """A part of the source that is not recognised and runs its own code.

    Attributes:
        name: of the source's module.
        module: the source's module.
        why: what is not recognised.
    """

    name: str
    module: nn.Module
    why: str


@dataclass(frozen=True, eq=False)
class MapPool:
    """Pooling by attention of learned queries (SigLIP's head).

    Attributes:
        latent: the queries ``[1, L, C]``.
        q: their projection, or None.
        kv: of the tokens: rows are k, v.
        heads: number of heads.
        scale: factor of the logits.
        q_norm: LayerNorm of q within each head, or None.
        k_norm: of k, or None.
        proj: of the result.
        norm: before the MLP, or None.
        mlp: added to the result.
        mean: whether the mean over the L results is taken; else the first one.
    """

    latent: Tensor
    q: Linear | None
    kv: Linear
    heads: int
    scale: float
    proj: Linear
    norm: Norm | None
    mlp: Mlp
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    mean: bool = False


@dataclass(frozen=True, eq=False)
class Readout:
    """From the tokens after the final norm to one result.

    Attributes:
        pooling: the ``"token"`` with number ``index``; the ``"mean"`` of the tokens from ``index`` on;
            ``"token_and_mean"``: the first token beside that mean; ``"all"`` tokens; ``"map"``.
        index: see ``pooling``.
        norm: of what is pooled, or None.
        layers: linear layers with what follows each; none for a model without head.
        map_pool: for ``"map"``, which pools the tokens from ``index`` on.
    """

    pooling: Pooling
    index: int
    norm: Norm | None
    layers: tuple[tuple[Linear, Activation], ...]
    map_pool: MapPool | None = None


@dataclass(frozen=True, eq=False)
class Transformer:
    """A Vision Transformer.

    Attributes:
        embedding: from images to tokens.
        blocks: in order.
        norm: over all tokens after the last block, or None.
        readouts: results, at least one.
        combine: ``"one"`` readout; the ``"mean"`` of all; or ``"each"``, as a tuple.
        late_prefix: tokens that join before block ``late_index`` (ConViT's class token).
        late_index: see ``late_prefix``.
    """

    embedding: Embedding
    blocks: tuple[Block | OwnForward, ...]
    norm: Norm | None
    readouts: tuple[Readout, ...]
    combine: Combine = "one"
    late_prefix: tuple[Tensor, ...] = ()
    late_index: int = 0


@dataclass(frozen=True, eq=False)
class RelationReuse:
    """What the attention of an exit takes from that of the exit before: a two-layer perceptron over all heads' logits.

    Attributes:
        name: of the source's module.
        fc1: ``[3 L H, L H]``.
        fc2: ``[L H, 3 L H]``.
        layers: number of layers L.
        upsample: ``[1 + G * G, 1 + g * g]``, between the grids of two exits.
    """

    name: str
    fc1: Linear
    fc2: Linear
    layers: int
    upsample: Tensor


@dataclass(frozen=True, eq=False)
class Exit:
    """One transformer of a Dynamic Vision Transformer.

    Attributes:
        transformer: its embedding, blocks, norm and head.
        relation_reuse: what its attention takes from the exit before, or None.
    """

    transformer: Transformer
    relation_reuse: RelationReuse | None


@dataclass(frozen=True, eq=False)
class Cascade:
    """A Dynamic Vision Transformer (Wang et al., 2021).

    Attributes:
        exits: in order.
        feature_reuse: whether exits hand their features on.
        relation_reuse: whether exits hand their logits on.
        num_classes: outputs of each head.
    """

    exits: tuple[Exit, ...]
    feature_reuse: bool
    relation_reuse: bool
    num_classes: int


Description = Transformer | Cascade
