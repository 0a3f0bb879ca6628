"""Builds the layers of an accelerated model from their specs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vitfast.inference.ir import (
    Activation,
    AttentionSpec,
    BlockSpec,
    FallbackSpec,
    LinearSpec,
    MergeSpec,
    MlpSpec,
    NormSpec,
    PatchesSpec,
    Precision,
    SplitSpec,
)
from vitfast.inference.modules.attention import BiasedAttention, GatedAttention, InferenceAttention, QkNormAttention
from vitfast.inference.modules.block import (
    BlockParts,
    InferenceBlock,
    InferenceMlp,
    ParallelBlock,
    PatchMerging,
    PostNormBlock,
)
from vitfast.inference.modules.fallback_block import FallbackBlock
from vitfast.inference.modules.linear import InferenceLinear, SourceRows, TorchInt8Linear, TorchLinear
from vitfast.inference.modules.norm import InferenceNorm, InferenceRmsNorm, round_to_fp16
from vitfast.inference.modules.patches import ConvNeck, Patches, SplitLinear
from vitfast.inference.modules.token_merging import MergingBlock, TokenMerging
from vitfast.inference.normalization import Normalization
from vitfast.inference.source_tensors import SourceTensors
from vitfast.layers.positional_attention import positional_probabilities

Layer = TypeVar("Layer", bound=nn.Module)
# precisions of FP16_32Config and FP16_16Config
_FP16_CONFIGS = ("fp16_32", "fp16_16")


class Backend:
    """Builds layers on torch operators, for a CPU without vitfast's library.

    ``CpuBackend`` and ``CudaBackend`` choose other classes for layers that they compute faster. The class of a layer
    determines which operators it calls; no ``forward`` chooses again.

    Args:
        source: the source model.
        precision: precision of layers whose spec leaves it open.
        device: target device.
        normalization: applied to the images first, or None.

    Attributes:
        tensors: copies of the source's tensors.
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

    @staticmethod
    def describe_kernels(body: nn.Module, device_type: str) -> str:
        """Describes for the report whose kernels run a built model on this machine."""
        return "torch's, vitfast's are not built"

    # --- classes of the layers, which backends override ---

    def linear_class(self, precision: Precision) -> type[InferenceLinear]:
        """Class of a linear layer."""
        return TorchInt8Linear if precision == "int8" else TorchLinear

    def layer_class(self, base: type[Layer], *parts: Any) -> type[Layer]:
        """Class of a layer made of ``parts``: ``base``, or one that computes the same in fewer operators."""
        return base

    # --- layers ---

    def copy(self, tensor: Tensor | None) -> Tensor | None:
        """Copies a tensor of the source to the device, unless it is None."""
        return None if tensor is None else self.tensors.copy(tensor)

    def copy_in_dtype(self, tensor: Tensor | None) -> Tensor | None:
        """As ``copy``, in the dtype of the tokens."""
        return None if tensor is None else self.tensors.copy(tensor).to(self.dtype)

    def linear(
        self,
        spec: LinearSpec,
        activation: Activation = "none",
        scale: Tensor | None = None,
        *,
        rows: slice | None = None,
        column_order: Tensor | None = None,
        norm: InferenceNorm | None = None,
    ) -> InferenceLinear:
        """Builds a linear layer or some of its rows, with the norm before it, and activation and LayerScale after."""
        first, last = (0, spec.out_features) if rows is None else (rows.start, rows.stop)
        weight, places = self.tensors.rows(spec, first, last)
        bias = self.tensors.bias(spec, first, last)
        precision = spec.precision or self.precision
        scale = self.copy_in_dtype(scale)
        return self.linear_class(precision)(weight, bias, precision, places, column_order, activation, scale, norm)

    def norm(self, spec: NormSpec, *, column_order: Tensor | None = None) -> InferenceNorm:
        """Builds a LayerNorm or RMSNorm; where ``accelerate`` rounds its input, gamma is rounded once."""
        precision = spec.precision or self.precision
        rounds_input = precision == "fp16_32"  # in fp16_16 it is stored in fp16
        weight, bias = self.copy(spec.weight), self.copy(spec.bias)
        if spec.weight is not None and weight is not None and precision in _FP16_CONFIGS and spec.precision is None:
            weight = round_to_fp16(weight)
            self.tensors.replace(spec.weight, weight)
        if column_order is not None:
            order = column_order.to(self.device)
            weight, bias = (None if tensor is None else tensor[order] for tensor in (weight, bias))
        return (InferenceRmsNorm if spec.is_rms else InferenceNorm)(weight, bias, spec.eps, rounds_input=rounds_input)

    def norm_or_identity(self, spec: NormSpec | None) -> nn.Module:
        """Builds a LayerNorm, or an identity for None."""
        return nn.Identity() if spec is None else self.norm(spec)

    def optional_norm(self, spec: NormSpec | None) -> InferenceNorm | None:
        """Builds a LayerNorm, or returns None."""
        return None if spec is None else self.norm(spec)

    def mlp(self, norm_spec: NormSpec | None, spec: MlpSpec, scale: Tensor | None = None) -> InferenceMlp:
        """Builds an MLP with the LayerNorm before it and LayerScale ``[C]`` after it, both optional."""
        norm = self.optional_norm(norm_spec)
        fc2 = self.linear(spec.fc2, scale=scale, norm=self.optional_norm(spec.norm))
        parts: tuple[Any, ...] = (norm, self.linear(spec.fc1, spec.activation), fc2)
        if spec.gate is not None:
            hidden = spec.fc1.out_features // 2
            first, last = slice(0, hidden), slice(hidden, 2 * hidden)
            gate, value = (first, last) if spec.gate == "first" else (last, first)
            parts = (norm, self.linear(spec.fc1, rows=value), fc2, self.linear(spec.fc1, spec.activation, rows=gate))
        return self.layer_class(InferenceMlp, *parts)(*parts)

    def block(self, spec: BlockSpec, num_patches: int = 0, *, in_windows: bool = False) -> InferenceBlock:
        """Builds a block; ``num_patches`` is required for ConViT's attention, ``in_windows`` as in ``_attention``."""
        parts = self.block_parts(spec, self._attention(spec.attention, num_patches, in_windows=in_windows))
        if spec.parallel:
            others = (self.block_parts(one, self._attention(one.attention, num_patches)) for one in spec.parallel)
            return ParallelBlock(spec.name, *parts, self.dtype, others=(BlockParts(*one) for one in others))
        if spec.is_post_norm:
            norm1, norm2 = self.norm(spec.norm1), self.norm(spec.norm2)
            cls = self.layer_class(PostNormBlock, *parts, norm1, norm2)
            return cls(spec.name, *parts, self.dtype, norm1=norm1, norm2=norm2)
        return self.layer_class(InferenceBlock, *parts)(spec.name, *parts, self.dtype)

    def merging_block(self, spec: BlockSpec, count: int) -> MergingBlock:
        """Builds a pre-norm block that merges at most ``count`` tokens."""
        parts = self.block_parts(spec, self._attention(spec.attention, 0))
        merging = self.layer_class(TokenMerging)(count)
        return self.layer_class(MergingBlock, *parts)(spec.name, *parts, self.dtype, merging=merging)

    def block_parts(
        self, spec: BlockSpec, attention: nn.Module
    ) -> tuple[InferenceLinear, nn.Module, InferenceLinear, InferenceMlp]:
        """Builds the parts of a block: q, k, v, attention, projection and MLP."""
        norm1, norm2 = (None, None) if spec.is_post_norm else (spec.norm1, spec.norm2)
        qkv = self.linear(spec.attention.qkv, norm=self.optional_norm(norm1))
        proj = self.linear(spec.attention.proj, scale=spec.scale1, norm=self.optional_norm(spec.attention.norm))
        return qkv, attention, proj, self.mlp(norm2, spec.mlp, spec.scale2)

    def merging(self, spec: MergeSpec) -> PatchMerging:
        """Builds a layer that merges patches."""
        channels = spec.linear.in_features // 4
        order = torch.arange(4 * channels).view(2, 2, channels).transpose(0, 1).flatten()
        split = self.split_linear(SplitSpec(2, 2, 0), spec.norm, spec.linear, channels, order=order)
        return PatchMerging(spec.name, split, self.norm_or_identity(spec.norm_after))

    def neck(self, module: nn.Module) -> ConvNeck:
        """Builds convolutions after the last block, from a copy of the source's."""
        neck = ConvNeck(module, self.device, self.dtype)
        self.tensors.adopt(module, neck.layers)
        return neck

    def fallback(self, spec: FallbackSpec) -> FallbackBlock:
        """Builds a block that runs the source's code."""
        block = FallbackBlock(spec, self.device, self.dtype)
        self.tensors.adopt(spec.module, block.module)
        return block

    def patches(self, spec: PatchesSpec) -> Patches:
        """Builds a projection of non-overlapping patches, with the normalization of the images where possible."""
        order = None
        if spec.order == "channels_last":
            sizes = (*spec.patch_size, spec.in_chans)
            order = torch.arange(spec.linear.in_features).view(sizes).permute(2, 0, 1).flatten()
        # pixels are 8-bit integers, which bf16 represents exactly: 8 bits would only be less accurate
        precision = spec.linear.precision or ("bf16" if self.precision in ("int8", "fp8") else self.precision)
        # zero padding comes after the normalization; FP16_32 rounds normalized images; in fp16 weights for pixels would
        # be subnormal
        can_normalize = order is None and max(spec.padding) <= 0 and precision not in ("fp16", *_FP16_CONFIGS)
        reads_pixels = self.normalization is not None and can_normalize
        if self.normalization is not None and can_normalize:
            linear = self._linear_of_pixels(spec.linear, precision, self.normalization)
        else:
            linear = self.linear(replace(spec.linear, precision=precision), column_order=order)
        norm = self.norm_or_identity(spec.norm)
        return self.layer_class(Patches, linear, norm)(spec, linear, norm, reads_pixels=reads_pixels)

    def split_linear(
        self,
        split: SplitSpec,
        norm_spec: NormSpec | None,
        spec: LinearSpec,
        token_dim: int | None,
        *,
        order: Tensor | None = None,
    ) -> SplitLinear:
        """Builds a projection of patches; arguments as in ``SplitLinear``.

        ``order``: where the source has the columns of layer and norm; None: in the order (channel, row, column).
        """
        if order is None and token_dim is not None:
            order = torch.arange(spec.in_features).view(token_dim, split.patch_size**2).t().flatten()
        norm = None if norm_spec is None else self.norm(norm_spec, column_order=order)
        linear = self.linear(spec, column_order=order)
        return self.layer_class(SplitLinear, norm, linear)(split, norm, linear, token_dim)

    def _attention(self, spec: AttentionSpec, num_patches: int, *, in_windows: bool = False) -> nn.Module:
        """Builds attention; ``in_windows``: within windows that each call gives."""
        heads = (spec.heads, spec.head_dim, spec.scale, spec.qkv.precision or self.precision)
        if spec.bias is not None or spec.windows is not None or in_windows:
            padding = None if spec.windows is None else self.tensors.bias(spec.qkv, 0, spec.qkv.out_features)
            cosine = None if spec.cosine is None else spec.cosine.detach().to(self.device, torch.float32)
            return self.layer_class(BiasedAttention)(*heads, padding, cosine)
        if spec.q_norm is None and spec.k_norm is None:
            attention = self.layer_class(InferenceAttention)(*heads)
        else:
            norms = (self.norm_or_identity(spec.q_norm), self.norm_or_identity(spec.k_norm))
            attention = QkNormAttention(*heads, *norms, spec.has_joint_norms)
        if spec.gated is None:
            return attention
        weight, bias, gating_param = (tensor.detach() for tensor in spec.gated)
        positional = positional_probabilities(weight, bias, math.isqrt(num_patches)).to(self.device)
        gate = torch.sigmoid(gating_param).to(self.device)
        return self.layer_class(GatedAttention, attention, positional)(attention, gate, positional, self.dtype)

    def _linear_of_pixels(
        self, spec: LinearSpec, precision: Precision, normalization: Normalization
    ) -> InferenceLinear:
        """Builds a layer that reads pixels where the source reads normalized images.

        The source's weight is copied for the state dict, because it cannot be restored bit by bit.
        """
        (weight,), (bias,) = spec.weights, spec.biases
        pixels = spec.in_features // len(normalization.mean)
        scale, shift = (one.repeat_interleave(pixels).to(self.device) for one in normalization.coefficients())
        weight = weight.detach().to(self.device).flatten(1).double()
        shifted = weight @ shift.double()
        if bias is not None:
            shifted = shifted + bias.detach().to(self.device)
        rows = (SourceRows((), 0, weight.shape[0], (weight.shape[1],)),)
        scaled = (weight * scale).float()
        return self.linear_class(precision)(scaled, shifted.float(), precision, rows)
