"""Builds the modules of an accelerated model from its intermediate representation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfast.inference.ir import (
    Activation,
    AttentionSpec,
    BlockSpec,
    EmbeddingSpec,
    ExitSpec,
    FallbackSpec,
    FeatureReuseSpec,
    LinearSpec,
    MapPoolSpec,
    MlpSpec,
    ModelSpec,
    NormSpec,
    PatchesSpec,
    Precision,
    ReadoutSpec,
    RelationReuseSpec,
    SplitSpec,
    TokenMixerSpec,
    TokensToTokenSpec,
    TransformerSpec,
)
from vitfast.inference.modules.attention import (
    FirstTokensAttention,
    GatedAttention,
    InferenceAttention,
    QkNormAttention,
    RelationAttention,
)
from vitfast.inference.modules.block import InferenceBlock, InferenceMlp, LastBlock
from vitfast.inference.modules.cascade import (
    FeatureReuse,
    InferenceCascade,
    InferenceExit,
    RelationReuse,
    RelationReusePerImage,
    ReuseBlock,
)
from vitfast.inference.modules.embedding import ConvStem, InferenceEmbedding, Patches
from vitfast.inference.modules.fallback_block import FallbackBlock
from vitfast.inference.modules.linear import InferenceLinear, SourceRows, TorchInt8Linear, TorchLinear, round_to_fp16
from vitfast.inference.modules.norm import InferenceNorm, NormLinear
from vitfast.inference.modules.readout import InferenceReadout, MapPool
from vitfast.inference.modules.tokens_to_token import (
    TOKENS_AT_ONCE,
    PerformerAttention,
    SingleHeadAttention,
    SplitLinear,
    TokenMixer,
    TokensToToken,
)
from vitfast.inference.modules.transformer import InferenceTransformer
from vitfast.inference.normalization import Normalization
from vitfast.inference.source_tensors import SourceTensors
from vitfast.layers.positional_attention import positional_probabilities


class Backend:
    """Builds accelerated models on torch operators; runs on a CPU without vitfast's library.

    ``CpuBackend`` and ``CudaBackend`` override the ``*_class`` members of layers that they compute faster. The class
    of a layer determines which operators it calls; no ``forward`` chooses again.

    Args:
        source: the source model.
        precision: precision of layers whose spec leaves it open.
        device: target device.
        normalization: applied to the images first, or None.

    Attributes:
        per_image: whether memory-bound steps run image by image, to stay in a CPU's cache.
    """

    per_image = True

    def __init__(
        self,
        source: nn.Module,
        precision: Precision,
        device: torch.device,
        normalization: Normalization | None = None,
    ) -> None:
        self.precision = precision
        self.device = device
        self.normalization = normalization
        self.tensors = SourceTensors(source, device)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the tokens between layers."""
        return torch.float32

    def model(self, spec: ModelSpec) -> InferenceTransformer | InferenceCascade:
        """Builds a whole model."""
        if isinstance(spec, TransformerSpec):
            return self._transformer(spec)
        exits = [self._exit(one) for one in spec.exits]
        return InferenceCascade(exits, feature_reuse=spec.feature_reuse, relation_reuse=spec.relation_reuse)

    def block(self, spec: BlockSpec, num_patches: int = 0) -> InferenceBlock:
        """Builds a block; ``num_patches`` is required for ConViT's attention."""
        qkv = self._norm_linear(self._norm(spec.norm1), self._linear(spec.attention.qkv))
        attention = self._attention(spec.attention, num_patches)
        proj = self._linear(spec.attention.proj)
        mlp = self._mlp(spec.norm2, spec.mlp, spec.scale2)
        cls = self.block_class(qkv, attention, proj, mlp)
        return cls(spec.name, qkv, attention, proj, self._in_dtype(spec.scale1), mlp, self.dtype)

    def describe_kernels(self, body: nn.Module) -> str:
        """Describes for the report whose kernels run the built model."""
        return "torch's, vitfast's are not built"

    # --- classes of the layers, which backends override ---

    relation_attention_class: type[RelationAttention] = RelationAttention
    performer_class: type[PerformerAttention] = PerformerAttention

    def linear_class(self, precision: Precision) -> type[InferenceLinear]:
        """Class of a linear layer."""
        return TorchInt8Linear if precision == "int8" else TorchLinear

    def norm_linear_class(self, norm: InferenceNorm, linear: InferenceLinear) -> type[NormLinear]:
        """Class of a LayerNorm with the linear layer after it."""
        return NormLinear

    def mlp_class(
        self,
        norm: InferenceNorm | None,
        fc1: InferenceLinear,
        fc2: InferenceLinear,
        activation: Activation,
        has_scale: bool,
    ) -> type[InferenceMlp]:
        """Class of an MLP; ``has_scale``: with LayerScale."""
        return InferenceMlp

    def block_class(
        self, qkv: NormLinear, attention: nn.Module, proj: InferenceLinear, mlp: InferenceMlp
    ) -> type[InferenceBlock]:
        """Class of a block."""
        return InferenceBlock

    def split_linear_class(self, norm: InferenceNorm | None, linear: InferenceLinear) -> type[SplitLinear]:
        """Class of a projection of overlapping patches."""
        return SplitLinear

    def embedding_class(self, patches: nn.Module) -> type[InferenceEmbedding]:
        """Class of the embedding."""
        return InferenceEmbedding

    def content_attention(self, spec: AttentionSpec) -> InferenceAttention:
        """Builds self-attention without LayerNorms of q and k."""
        return InferenceAttention(spec.heads, spec.head_dim, spec.scale)

    def gated_attention(
        self, content: InferenceAttention, gate: Tensor, positional: Tensor
    ) -> InferenceAttention | GatedAttention:
        """Builds ConViT's attention from attention by content, ``gate`` ``[H]`` and ``positional`` ``[2, H, G, G]``."""
        return GatedAttention(content, gate[:, None].to(self.dtype), positional)

    # --- tensors and small parts ---

    def _copy(self, tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else self.tensors.copy(tensor)

    def _in_dtype(self, tensor: Tensor | None) -> Tensor | None:
        """Returns a copy in the dtype of the tokens."""
        return None if tensor is None else self.tensors.copy(tensor).to(self.dtype)

    def _linear(
        self, spec: LinearSpec, *, rows: slice | None = None, column_order: Tensor | None = None
    ) -> InferenceLinear:
        """Builds a linear layer, or some of its rows."""
        first, last = (0, spec.out_features) if rows is None else (rows.start, rows.stop)
        weight, places = self.tensors.rows(spec, first, last)
        bias = self.tensors.bias(spec, first, last)
        precision = spec.precision or self.precision
        return self.linear_class(precision)(weight, bias, precision, places, column_order)

    def _linear_of_pixels(self, spec: LinearSpec, scale: Tensor, shift: Tensor) -> InferenceLinear:
        """Builds a layer that reads ``x`` where the source reads ``x * scale + shift``; both are ``[K]``.

        The source's weight is copied for the state dict, because it cannot be restored bit by bit.
        """
        (weight,), (bias,) = spec.weights, spec.biases
        weight = weight.detach().to(self.device).flatten(1).double()
        shifted = weight @ shift.to(self.device).double()
        if bias is not None:
            shifted = shifted + bias.detach().to(self.device)
        rows = (SourceRows((), 0, weight.shape[0], (weight.shape[1],)),)
        scaled = (weight * scale.to(self.device)).float()
        precision = spec.precision or self.precision
        return self.linear_class(precision)(scaled, shifted.float(), precision, rows)

    def _norm(self, spec: NormSpec, *, column_order: Tensor | None = None) -> InferenceNorm:
        """Builds a LayerNorm; where ``accelerate`` rounds its input, gamma is rounded once."""
        rounds = (spec.precision or self.precision) == "fp16_32"
        weight, bias = self._copy(spec.weight), self._copy(spec.bias)
        if spec.weight is not None and weight is not None and rounds and spec.precision is None:
            weight = round_to_fp16(weight)
            self.tensors.replace(spec.weight, weight)
        if column_order is not None:
            order = column_order.to(self.device)
            weight, bias = (None if tensor is None else tensor[order] for tensor in (weight, bias))
        return InferenceNorm(weight, bias, spec.eps, rounds_input=rounds)

    def _norm_or_identity(self, spec: NormSpec | None) -> nn.Module:
        return nn.Identity() if spec is None else self._norm(spec)

    def _norm_linear(self, norm: InferenceNorm, linear: InferenceLinear) -> NormLinear:
        return self.norm_linear_class(norm, linear)(norm, linear)

    def _mlp(self, norm: NormSpec | None, spec: MlpSpec, scale: Tensor | None = None) -> InferenceMlp:
        built = None if norm is None else self._norm(norm)
        fc1, fc2 = self._linear(spec.fc1), self._linear(spec.fc2)
        cls = self.mlp_class(built, fc1, fc2, spec.activation, scale is not None)
        return cls(built, fc1, spec.activation, fc2, self._in_dtype(scale))

    def _attention(self, spec: AttentionSpec, num_patches: int) -> InferenceAttention | GatedAttention:
        if spec.q_norm is None and spec.k_norm is None:
            attention = self.content_attention(spec)
        else:
            attention = QkNormAttention(
                spec.heads,
                spec.head_dim,
                spec.scale,
                q_norm=self._norm_or_identity(spec.q_norm),
                k_norm=self._norm_or_identity(spec.k_norm),
            )
        if spec.gated is None:
            return attention
        gate = torch.sigmoid(spec.gated.gating_param.detach()).to(self.device)
        weight, bias = spec.gated.weight.detach(), spec.gated.bias.detach()
        positional = positional_probabilities(weight, bias, math.isqrt(num_patches)).to(self.device)
        return self.gated_attention(attention, gate, positional)

    # --- transformers ---

    def _transformer(self, spec: TransformerSpec) -> InferenceTransformer:
        embedding = self._embedding(spec.embedding)
        readouts = [self._readout(one) for one in spec.readouts]
        num_patches = embedding.patches.num_patches
        blocks = [self._block_or_fallback(one, num_patches) for one in spec.blocks[:-1]]
        blocks += [self._last_block(one, num_patches, readouts) for one in spec.blocks[-1:]]
        late_prefix = None
        if spec.late_prefix:
            late_prefix = torch.cat([token.detach() for token in spec.late_prefix], dim=1).to(self.device, self.dtype)
        norm = self._norm_or_identity(spec.norm)
        return InferenceTransformer(embedding, blocks, norm, readouts, spec.combine, late_prefix, spec.late_index)

    def _block_or_fallback(self, spec: BlockSpec | FallbackSpec, num_patches: int) -> nn.Module:
        return self._fallback(spec) if isinstance(spec, FallbackSpec) else self.block(spec, num_patches)

    def _fallback(self, spec: FallbackSpec) -> FallbackBlock:
        block = FallbackBlock(spec, self.device, self.dtype)
        self.tensors.adopt(spec.module, block.module)
        return block

    def _last_block(
        self, spec: BlockSpec | FallbackSpec, num_patches: int, readouts: Sequence[InferenceReadout]
    ) -> nn.Module:
        """Builds the last block; one that computes only the tokens that all readouts read, where possible."""
        read = [readout.tokens_read for readout in readouts]
        tokens = None if None in read else max(count for count in read if count is not None)
        if tokens is None or isinstance(spec, FallbackSpec) or spec.attention.gated is not None:
            return self._block_or_fallback(spec, num_patches)
        attention, norm1 = spec.attention, self._norm(spec.norm1)
        inner = attention.heads * attention.head_dim
        return LastBlock(
            spec.name,
            self._norm_linear(norm1, self._linear(attention.qkv, rows=slice(0, inner))),
            self._norm_linear(norm1, self._linear(attention.qkv, rows=slice(inner, 3 * inner))),
            FirstTokensAttention(
                attention.heads,
                attention.head_dim,
                attention.scale,
                q_norm=self._norm_or_identity(attention.q_norm),
                k_norm=self._norm_or_identity(attention.k_norm),
            ),
            self._linear(attention.proj),
            self._in_dtype(spec.scale1),
            self._mlp(spec.norm2, spec.mlp, spec.scale2),
            self.dtype,
            tokens,
        )

    def _readout(self, spec: ReadoutSpec) -> InferenceReadout:
        return InferenceReadout(
            spec,
            None if spec.map_pool is None else self._map_pool(spec.map_pool),
            self._norm_or_identity(spec.norm),
            [self._linear(linear) for linear, _ in spec.layers],
            [activation for _, activation in spec.layers],
        )

    def _map_pool(self, spec: MapPoolSpec) -> MapPool:
        queries = spec.latent.detach()
        if spec.q is not None:
            queries = F.linear(queries, spec.q.weights[0].detach(), spec.q.biases[0])
        queries_1LHD = queries.detach().to(self.device).unflatten(-1, (spec.heads, -1))
        queries_1HLD = self._norm_or_identity(spec.q_norm)(queries_1LHD).transpose(1, 2).contiguous()
        norm = None if spec.norm is None else self._norm(spec.norm)
        return MapPool(
            queries_1HLD.to(self.dtype),
            spec.scale,
            self._linear(spec.kv),
            self._norm_or_identity(spec.k_norm),
            self._linear(spec.proj),
            InferenceMlp(norm, self._linear(spec.mlp.fc1), spec.mlp.activation, self._linear(spec.mlp.fc2)),
            mean=spec.mean,
        )

    # --- embeddings ---

    def _embedding(self, spec: EmbeddingSpec) -> InferenceEmbedding:
        patches: Patches | TokensToToken | ConvStem
        if isinstance(spec.patches, PatchesSpec):
            patches = self._patches(spec.patches)
        elif isinstance(spec.patches, TokensToTokenSpec):
            patches = self._tokens_to_token(spec.patches)
        else:
            patches = ConvStem(spec.patches, self.device, self.dtype)
        pre_norm, positions = self._norm_or_identity(spec.pre_norm), self._copy(spec.positions)
        cls = self.embedding_class(patches)
        return cls(spec, patches, positions, pre_norm, self.normalization, self.device, self.dtype)

    def _patches(self, spec: PatchesSpec) -> Patches:
        order = None
        if spec.order == "channels_last":
            sizes = (*spec.patch_size, spec.in_chans)
            order = torch.arange(spec.linear.in_features).view(sizes).permute(2, 0, 1).flatten()
        # pixels are 8-bit integers, which bf16 represents exactly: int8 would only be less accurate
        precision = spec.linear.precision or ("bf16" if self.precision == "int8" else self.precision)
        linear_spec = replace(spec.linear, precision=precision)
        normalization = self.normalization
        # zero padding comes after the normalization; FP16_32 rounds normalized images; in fp16 weights for pixels would
        # be subnormal
        reads_pixels = order is None and max(spec.padding) <= 0 and precision not in ("fp16", "fp16_32")
        if normalization is None or not reads_pixels:
            linear = self._linear(linear_spec, column_order=order)
            return Patches(spec, linear, self._norm_or_identity(spec.norm), reads_pixels=False)
        pixels = spec.patch_size[0] * spec.patch_size[1]
        scale, shift = (values.repeat_interleave(pixels) for values in normalization.coefficients())
        linear = self._linear_of_pixels(linear_spec, scale, shift)
        return Patches(spec, linear, self._norm_or_identity(spec.norm), reads_pixels=True)

    def _tokens_to_token(self, spec: TokensToTokenSpec) -> TokensToToken:
        (split1, split2, split3), (mixer1, mixer2) = spec.splits, spec.mixers
        first = self._token_mixer(split1, mixer1, None)
        second = self._token_mixer(split2, mixer2, first.mlp.fc2.out_features)
        project = self._split_linear(split3, None, spec.project, second.mlp.fc2.out_features)
        return TokensToToken(spec, first, second, project, TOKENS_AT_ONCE if self.per_image else None)

    def _token_mixer(self, split: SplitSpec, spec: TokenMixerSpec, token_dim: int | None) -> TokenMixer:
        attention: nn.Module = SingleHeadAttention(spec.scale)
        if spec.projection is not None:
            attention = self.performer_class(self.tensors.copy(spec.projection))
        linear = self._split_linear(split, spec.norm1, spec.linear, token_dim)
        return TokenMixer(linear, attention, self._linear(spec.proj), self._mlp(spec.norm2, spec.mlp))

    def _split_linear(
        self, split: SplitSpec, norm_spec: NormSpec | None, spec: LinearSpec, token_dim: int | None
    ) -> SplitLinear:
        order = None
        if token_dim is not None:
            order = torch.arange(spec.in_features).view(token_dim, split.patch_size**2).t().flatten()
        norm = None if norm_spec is None else self._norm(norm_spec, column_order=order)
        linear = self._linear(spec, column_order=order)
        return self.split_linear_class(norm, linear)(split, norm, linear, token_dim)

    # --- cascades ---

    def _exit(self, spec: ExitSpec) -> InferenceExit:
        transformer = spec.transformer
        embedding = self._embedding(transformer.embedding)
        reuse = None if spec.relation_reuse is None else self._relation_reuse(spec.relation_reuse)
        upsample = None if reuse is None else reuse.upsample
        blocks = [
            self._fallback(one) if isinstance(one, FallbackSpec) else self._reuse_block(one, upsample)
            for one in transformer.blocks
        ]
        norm = self._norm_or_identity(transformer.norm)
        return InferenceExit(embedding, reuse, blocks, norm, self._readout(transformer.readouts[0]))

    def _relation_reuse(self, spec: RelationReuseSpec) -> RelationReuse:
        cls = RelationReusePerImage if self.per_image else RelationReuse
        mlp = self._mlp(None, MlpSpec(spec.fc1, "gelu", spec.fc2))
        return cls(spec.layers, mlp, self.tensors.copy(spec.upsample))

    def _reuse_block(self, spec: BlockSpec, upsample: Tensor | None) -> ReuseBlock:
        attention, reuse = spec.attention, spec.feature_reuse
        return ReuseBlock(
            spec.name,
            self._norm_linear(self._norm(spec.norm1), self._linear(attention.qkv)),
            self.relation_attention_class(attention.heads, attention.head_dim, attention.scale),
            self._linear(attention.proj),
            None if reuse is None else self._feature_reuse(reuse),
            self._mlp(spec.norm2, spec.mlp),
            upsample,
            self.dtype,
        )

    def _feature_reuse(self, spec: FeatureReuseSpec) -> FeatureReuse:
        return FeatureReuse(self._mlp(spec.norm, spec.mlp), self.tensors.copy(spec.upsample).to(self.dtype))
