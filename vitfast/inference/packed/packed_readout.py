"""From the tokens of an accelerated model to one of its results."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfast.inference.ir import MapPoolSpec, ReadoutSpec
from vitfast.inference.packed.packed_block import path_of
from vitfast.inference.packed.packed_linear import PackedLinear
from vitfast.inference.packed.packer import Packer


class PackedMapPool(nn.Module):
    """Pooling by attention of learned queries, which depend on no image and are projected here, once.

    Args:
        described: the pooling.
        packer: packs.
    """

    queries: Tensor

    def __init__(self, described: MapPoolSpec, packer: Packer) -> None:
        super().__init__()
        self.heads = described.heads
        self.scale = described.scale
        self.mean = described.mean
        queries = described.latent.detach()
        if described.q is not None:
            queries = F.linear(queries, described.q.weights[0].detach(), described.q.biases[0])
        self.q_norm = packer.optional_norm(described.q_norm)
        self.k_norm = packer.optional_norm(described.k_norm)
        queries_1LHD = queries.detach().to(packer.device).unflatten(-1, (self.heads, -1))
        queries_1HLD = self.q_norm(queries_1LHD).transpose(1, 2).contiguous()
        self.register_buffer("queries", queries_1HLD.to(packer.stream_dtype))
        self.kv = packer.linear(described.kv)
        self.proj = packer.linear(described.proj)
        self.norm = packer.optional_norm(described.norm)
        self.fc1, self.fc2 = packer.linear(described.mlp.fc1), packer.linear(described.mlp.fc2)
        self.activation = described.mlp.activation

    def forward(self, tokens: Tensor) -> Tensor:
        """Pools ``tokens`` ``[B, N, C]`` to ``[B, C]``."""
        k_BNHD, v_BNHD = self.kv(tokens).unflatten(-1, (2, self.heads, -1)).unbind(2)
        q_BHLD = self.queries.expand(tokens.shape[0], -1, -1, -1)
        k_BHND, v_BHND = self.k_norm(k_BNHD).transpose(1, 2), v_BNHD.transpose(1, 2)
        out_BHLD = F.scaled_dot_product_attention(q_BHLD, k_BHND, v_BHND, scale=self.scale)
        x = self.proj(out_BHLD.transpose(1, 2).flatten(-2))
        x = self.fc2(self.fc1(self.norm(x), self.activation), residual=x)
        return x.mean(1) if self.mean else x[:, 0]


class PackedReadout(nn.Module):
    """Pools, normalizes, and applies the head.

    Args:
        described: the readout.
        packer: packs.
    """

    def __init__(self, described: ReadoutSpec, packer: Packer) -> None:
        super().__init__()
        self.pooling = described.pooling
        self.index = described.index
        self.map_pool = None if described.map_pool is None else PackedMapPool(described.map_pool, packer)
        self.norm = packer.optional_norm(described.norm)
        self.layers = nn.ModuleList(packer.linear(linear) for linear, _ in described.layers)
        self.activations = [activation for _, activation in described.layers]

    @property
    def tokens_read(self) -> int | None:
        """How many of the first tokens are read; None: all."""
        return self.index + 1 if self.pooling == "token" else None

    @property
    def path(self) -> str:
        """What runs it."""
        return path_of(*self.layers) if len(self.layers) else f"pooling ({self.pooling})"

    def forward(self, tokens: Tensor) -> Tensor:
        """Reads ``tokens`` ``[B, N, C]``; returns ``[B, classes]``, the pooled ``[B, C]`` or all ``[B, N, C]``."""
        x: Tensor = self.norm(self._pool(tokens))
        for layer, activation in zip(self.layers, self.activations, strict=True):
            assert isinstance(layer, PackedLinear)
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
