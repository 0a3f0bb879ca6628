"""Quantized counterparts of torch's layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from vitfast.errors import UserError
from vitfast.layers.fusion import take_in_place
from vitfast.ops.attention import torch_attention
from vitfast.ops.autocast import autocast_off
from vitfast.quantization.quantized_module import QuantizedLinearBase, QuantizedModule


class QuantizedLinear(QuantizedLinearBase, nn.Linear):
    """Counterpart of ``torch.nn.Linear``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.is_off else self.compute(F.linear, x, self.weight)


class QuantizedOutProjection(QuantizedLinear, NonDynamicallyQuantizableLinear):
    """Counterpart of the output projection of ``torch.nn.MultiheadAttention``."""


class QuantizedParametrizedLinear(QuantizedLinear):
    """Base class for linear layers whose weight is computed from other parameters (weight normalization).

    There is no tensor that could store the rounded weight, so it is rounded in every forward pass, also after
    conversion. The results equal those of a converted layer.
    """

    def convert(self) -> None:
        """Does nothing."""


class QuantizedConv2d(QuantizedLinearBase, nn.Conv2d):
    """Counterpart of ``torch.nn.Conv2d``: the patch embedding of many models."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.is_off else self.compute(self._conv_forward, x, self.weight)


class QuantizedLayerNorm(QuantizedModule, nn.LayerNorm):
    """Counterpart of ``torch.nn.LayerNorm``."""

    @property
    def gamma(self) -> Tensor | None:
        """The weight in the configured arithmetic."""
        return self.arithmetic.gamma(self)

    def forward(self, x: Tensor) -> Tensor:
        if self.is_off:
            return super().forward(x)
        with autocast_off(x):
            x = x if self.weight is None else x.to(self.weight.dtype)
            x = self.arithmetic.round("operand", x, in_place=take_in_place(x))
            return self.arithmetic.round("result", self.normalize(x))

    def normalize(self, x: Tensor) -> Tensor:
        """Computes the LayerNorm."""
        return F.layer_norm(x, self.normalized_shape, self.gamma, self.bias, self.eps)


class QuantizedTransformerEncoderLayer(QuantizedModule, nn.TransformerEncoderLayer):
    """Counterpart of ``torch.nn.TransformerEncoderLayer``: both additions to the residual stream are stored results.

    Calls the layers, where torch's fused inference path would read their weights and round nothing.
    """

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        if self.is_off:
            return super().forward(src, src_mask, src_key_padding_mask, is_causal)
        x, masks = src, (src_mask, src_key_padding_mask, is_causal)
        if self.norm_first:
            x = self.stored(x + self._sa_block(self.norm1(x), *masks))
            return self.stored(x + self._ff_block(self.norm2(x)))
        x = self.norm1(self.stored(x + self._sa_block(x, *masks)))
        return self.norm2(self.stored(x + self._ff_block(x)))


class QuantizedMultiheadAttention(QuantizedLinearBase, nn.MultiheadAttention):
    """Counterpart of ``torch.nn.MultiheadAttention`` for ``batch_first`` self-attention, as in torchvision's ViT.

    Computes the q, k, v projection in the configured arithmetic; ``out_proj`` is a linear layer with a counterpart.
    """

    @property
    def weight(self) -> Tensor:
        """Weight of the q, k, v projection."""
        return self.in_proj_weight

    @property
    def bias(self) -> Tensor | None:
        """Bias of the q, k, v projection."""
        return self.in_proj_bias

    def forward(  # type: ignore[override]
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = True, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Attends; ``query``, ``key`` and ``value`` are one tensor ``[B, N, C]``.

        Raises:
            UserError: the call is not ``need_weights=False`` self-attention without masks.
        """
        if self.is_off:
            return super().forward(query, key, value, need_weights=need_weights, **options)
        options.pop("average_attn_weights", None)
        is_masked = any(option is not None and option is not False for option in options.values())
        if key is not query or value is not query or need_weights or is_masked or not self.batch_first:
            raise UserError(
                "a quantized MultiheadAttention computes batch_first self-attention with need_weights=False and no "
                "mask; leave this one out with filter_fn"
            )
        qkv = self.compute(F.linear, query, self.in_proj_weight)
        q_BHND, k_BHND, v_BHND = torch.unflatten(qkv, -1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        with autocast_off(query):
            dropout_p = self.dropout if self.training else 0.0
            out_BHND = torch_attention(q_BHND, k_BHND, v_BHND, dropout_p=dropout_p)
        return self.out_proj(out_BHND.transpose(1, 2).flatten(-2)), None
