"""From the tokens of an accelerated model to one of its outputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfast.inference.ir import Activation, ReadoutSpec
from vitfast.inference.modules.block import InferenceMlp
from vitfast.inference.modules.linear import InferenceLinear, describe_gemms


class MapPool(nn.Module):
    """Attention pooling with learned queries, whose projection does not depend on the image and is precomputed.

    Args:
        queries: projected and normalized queries ``[1, H, L, D]``.
        scale: factor on the logits.
        kv: projection of the tokens to k and v.
        k_norm: LayerNorm of k within each head, or an identity.
        proj: output projection.
        mlp: the MLP with its LayerNorm.
        mean: return the mean over the L results; else the first one.
    """

    queries: Tensor

    def __init__(
        self,
        queries: Tensor,
        scale: float,
        kv: InferenceLinear,
        k_norm: nn.Module,
        proj: InferenceLinear,
        mlp: InferenceMlp,
        *,
        mean: bool,
    ) -> None:
        super().__init__()
        self.register_buffer("queries", queries)
        self.scale = scale
        self.kv = kv
        self.k_norm = k_norm
        self.proj = proj
        self.mlp = mlp
        self.mean = mean

    def forward(self, tokens: Tensor) -> Tensor:
        """Pools ``tokens`` ``[B, N, C]`` to ``[B, C]``."""
        k_BNHD, v_BNHD = self.kv(tokens).unflatten(-1, (2, self.queries.shape[1], -1)).unbind(2)
        q_BHLD = self.queries.expand(tokens.shape[0], -1, -1, -1)
        k_BHND, v_BHND = self.k_norm(k_BNHD).transpose(1, 2), v_BNHD.transpose(1, 2)
        out_BHLD = F.scaled_dot_product_attention(q_BHLD, k_BHND, v_BHND, scale=self.scale)
        x = self.proj(out_BHLD.transpose(1, 2).flatten(-2))
        x = self.mlp(x, x)
        return x.mean(1) if self.mean else x[:, 0]


class InferenceReadout(nn.Module):
    """Pools, normalizes and applies the head.

    Args:
        spec: its ``pooling`` and ``index`` are used.
        map_pool: for map pooling.
        norm: applied to the pooled tokens, or an identity.
        layers: linear layers of the head.
        activations: the activation after each layer.
    """

    def __init__(
        self,
        spec: ReadoutSpec,
        map_pool: MapPool | None,
        norm: nn.Module,
        layers: Sequence[InferenceLinear],
        activations: Sequence[Activation],
    ) -> None:
        super().__init__()
        self.pooling = spec.pooling
        self.index = spec.index
        self.map_pool = map_pool
        self.norm = norm
        self.layers = nn.ModuleList(layers)
        self.activations = activations

    @property
    def tokens_read(self) -> int | None:
        """How many of the first tokens are read; None: all."""
        return self.index + 1 if self.pooling == "token" else None

    @property
    def path(self) -> str:
        """What runs the head, for the report."""
        linears = [layer for layer in self.layers if isinstance(layer, InferenceLinear)]
        return describe_gemms(*linears) if linears else f"pooling ({self.pooling})"

    def forward(self, tokens: Tensor) -> Tensor:
        """Reads ``tokens`` ``[B, N, C]``; returns ``[B, classes]``, the pooled ``[B, C]`` or all ``[B, N, C]``."""
        x: Tensor = self.norm(self._pool(tokens))
        for layer, activation in zip(self.layers, self.activations, strict=True):
            x = layer(x, activation)
        return x

    def _pool(self, tokens: Tensor) -> Tensor:
        if self.pooling == "token":
            return tokens[:, self.index]
        if self.pooling == "mean":
            return tokens[:, self.index :].mean(dim=1)
        if self.pooling == "token_and_mean":
            return torch.cat([tokens[:, 0], tokens[:, self.index :].mean(dim=1)], dim=1)
        if self.map_pool is not None:
            pooled: Tensor = self.map_pool(tokens[:, self.index :])
            return pooled
        return tokens
