"""From the tokens of an accelerated model to one of its outputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfast.inference.backend import Backend
from vitfast.inference.ir import MapPoolSpec, ReadoutSpec
from vitfast.inference.modules.attention import attend_few
from vitfast.inference.modules.linear import InferenceLinear, describe_gemms


class MapPool(nn.Module):
    """Attention pooling with learned queries, whose projection does not depend on the image and is precomputed."""

    queries: Tensor  # [1, L, H, D]

    def __init__(self, spec: MapPoolSpec, backend: Backend) -> None:
        super().__init__()
        queries = spec.latent.detach()
        if spec.q is not None:
            queries = F.linear(queries, spec.q.weights[0].detach(), spec.q.biases[0])
        queries_1LHD = queries.detach().to(backend.device).unflatten(-1, (spec.heads, -1))
        self.register_buffer("queries", backend.norm_or_identity(spec.q_norm)(queries_1LHD).to(backend.dtype))
        self.scale = spec.scale
        self.kv = backend.linear(spec.kv)
        self.k_norm = backend.norm_or_identity(spec.k_norm)
        self.proj = backend.linear(spec.proj)
        self.mlp = backend.mlp(spec.norm, spec.mlp)
        self.mean = spec.mean

    def forward(self, tokens: Tensor) -> Tensor:
        """Pools ``tokens`` ``[B, N, C]`` to ``[B, C]``."""
        k_BNHD, v_BNHD = self.kv(tokens).unflatten(-1, (2, self.queries.shape[2], -1)).unbind(2)
        queries = self.queries.expand(tokens.shape[0], -1, -1, -1)
        x = self.proj(attend_few(queries, self.k_norm(k_BNHD), v_BNHD, self.scale).flatten(-2))
        x = self.mlp(x, x)
        return x.mean(1) if self.mean else x[:, 0]


class InferenceReadout(nn.Module):
    """Pools, normalizes and applies the head."""

    def __init__(self, spec: ReadoutSpec, backend: Backend) -> None:
        super().__init__()
        self.pooling = spec.pooling
        self.index = spec.index
        self.state = spec.state
        self.is_projected = spec.is_projected
        self.map_pool = None if spec.map_pool is None else MapPool(spec.map_pool, backend)
        self.norm = backend.norm_or_identity(spec.norm)
        self.layers = nn.Sequential(*(backend.linear(*layer) for layer in spec.layers))

    @property
    def path(self) -> str:
        """What runs the head, for the report."""
        linears = [layer for layer in self.layers if isinstance(layer, InferenceLinear)]
        return describe_gemms(*linears) if linears else f"pooling ({self.pooling})"

    def forward(self, tokens: Tensor, grid: tuple[int, int] = (0, 0)) -> Tensor:
        """Reads ``tokens`` ``[B, N, C]``; returns ``[B, classes]``, the pooled ``[B, C]`` or all ``[B, N, C]``.

        With ``pooling="grid"`` it returns ``[B, C, H, W]`` for patches on ``grid`` ``(H, W)``.
        """
        x: Tensor = self.layers(self.norm(self._pool(tokens)))
        return x.transpose(1, 2).unflatten(2, grid).contiguous() if self.pooling == "grid" else x

    def embed(self, tokens: Tensor) -> Tensor:
        """Reads ``tokens`` ``[B, N, C]``; returns the pooled ``[B, C]`` that enters the classifier."""
        pooled: Tensor = self.norm(self._pool(tokens))
        return self.layers(pooled) if self.is_projected else pooled

    def _pool(self, tokens: Tensor) -> Tensor:
        if self.pooling == "token":
            return tokens[:, self.index]
        if self.pooling == "mean":
            return tokens[:, self.index :].mean(dim=1)
        if self.pooling == "token_and_mean":
            return torch.cat([tokens[:, 0], tokens[:, self.index :].mean(dim=1)], dim=1)
        if self.pooling == "all":
            return tokens
        tokens = tokens[:, self.index :]
        return tokens if self.map_pool is None else self.map_pool(tokens)
