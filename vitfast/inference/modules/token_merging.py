"""Token merging between the attention and the MLP of a block.

Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitfast.inference.modules.attention import unit_vectors
from vitfast.inference.modules.block import InferenceBlock


class MergedTokens:
    """What the tokens of a batch consist of, as blocks merge them.

    Args:
        prefix: number of tokens at the front that are never merged.

    Attributes:
        sizes: number of original tokens in each token ``[B, N]``, float32; None: nothing is merged yet.
        places: for each original token the index of the token that holds it ``[B, N0]``; None: nothing is merged yet.
    """

    def __init__(self, prefix: int) -> None:
        self.prefix = prefix
        self.sizes: Tensor | None = None
        self.places: Tensor | None = None

    @property
    def key_bias(self) -> Tensor | None:
        """Bias of the logits of attention to each token, which then counts as its original tokens."""
        return None if self.sizes is None else self.sizes.log()

    def update(self, sizes: Tensor, places: Tensor) -> None:
        """Records that tokens were merged; ``places`` ``[B, N]``: index of the token that holds each one before."""
        self.sizes = sizes
        self.places = places if self.places is None else places.gather(1, self.places)

    def spread(self, x: Tensor) -> Tensor:
        """Copies ``x`` ``[B, N, C]`` to the places of the original tokens, ``[B, N0, C]``."""
        if self.places is None:
            return x
        return x.gather(1, self.places[..., None].expand(-1, -1, x.shape[-1]))

    def spread_pairs(self, x: Tensor) -> Tensor:
        """Copies ``x`` ``[B, H, N, N]`` to the places of the pairs of original tokens, ``[B, H, N0, N0]``."""
        if self.places is None:
            return x
        heads, tokens = x.shape[1:3]
        rows = x.gather(2, self.places[:, None, :, None].expand(-1, heads, -1, tokens))
        return rows.gather(3, self.places[:, None, None].expand(-1, heads, rows.shape[2], -1))

    def mean(self, x: Tensor) -> Tensor:
        """Averages ``x`` ``[B, N0, C]`` of the original tokens over each token, ``[B, N, C]``."""
        if self.places is None or self.sizes is None:
            return x
        return (_sums(x, self.places, self.sizes.shape[1]) / self.sizes[..., None]).to(x.dtype)


class TokenMerging(nn.Module):
    """Replaces at most ``count`` tokens and the tokens most similar to them by their mean, weighted by their sizes.

    The tokens after the prefix are divided alternately into two sets. Each token of the first set is paired with the
    token of the second set whose key (mean of the heads) has the largest cosine similarity, and the ``count`` most
    similar pairs are merged; several may share a token of the second set. At most half of the tokens after the prefix
    are merged.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor, keys_BNHD: Tensor, merged: MergedTokens) -> Tensor:
        """Merges ``x`` ``[B, N, C]`` by the keys of the attention before, and records it in ``merged``.

        Returns:
            ``[B, N - count, C]``: the prefix, the rest of the first set, and the second set.
        """
        count = min(self.count, (x.shape[1] - merged.prefix) // 2)
        if count <= 0:
            return x
        x, sizes, places = self.merge(x, keys_BNHD, merged.sizes, count, merged.prefix)
        merged.update(sizes, places)
        return x

    def merge(
        self, x: Tensor, keys_BNHD: Tensor, sizes: Tensor | None, count: int, prefix: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the tokens ``[B, N - count, C]``, their sizes, and the index of each token's new one ``[B, N]``."""
        places = _matched(keys_BNHD.float().mean(2), count, prefix)
        tokens = x.shape[1] - count
        sizes = torch.ones_like(x[..., 0], dtype=torch.float32) if sizes is None else sizes
        new_sizes = _sums(sizes[..., None], places, tokens).squeeze(-1)
        return (_sums(x * sizes[..., None], places, tokens) / new_sizes[..., None]).to(x.dtype), new_sizes, places


class MergingBlock(InferenceBlock):
    """A block that merges tokens between attention and MLP."""

    def __init__(self, *arguments: Any, merging: TokenMerging) -> None:
        super().__init__(*arguments)
        self.merging = merging

    @property
    def path(self) -> str:
        return f"{super().path}, merges {self.merging.count} tokens"

    def forward(  # type: ignore[override]
        self, x: Tensor, merged: MergedTokens | None = None
    ) -> Tensor:
        """Transforms the residual stream ``x`` ``[B, N, C]``; merges no tokens without ``merged``."""
        x = x.to(self.dtype).contiguous()
        qkv = self.qkv(x)
        x = self.proj(self.attention(qkv, key_bias=None if merged is None else merged.key_bias), x)
        if merged is not None:
            x = self.merging(x, self.attention.split_heads(qkv)[:, :, 1], merged)  # type: ignore[operator]
        return self.mlp(x, x)


def _matched(keys: Tensor, count: int, prefix: int) -> Tensor:
    """Returns the index of each token after merging, ``[B, N]``, by the keys ``[B, N, D]``."""
    tokens = keys.shape[1]
    indices = torch.arange(tokens, device=keys.device)
    # by the index among all tokens, as in the paper's code
    first, second = indices[prefix + prefix % 2 :: 2], indices[prefix + 1 - prefix % 2 :: 2]
    normalized = unit_vectors(keys)
    similarity, partner = (normalized[:, first] @ normalized[:, second].transpose(1, 2)).max(-1)
    order = similarity.argsort(dim=-1, descending=True, stable=True)
    is_kept = torch.ones_like(order, dtype=torch.bool).scatter_(1, order[:, :count], False)
    kept = len(first) - count
    place_of_kept = prefix + is_kept.cumsum(1) - 1
    places = indices.expand(len(keys), -1).clone()
    places[:, first] = torch.where(is_kept, place_of_kept, prefix + kept + partner)
    places[:, second] = prefix + kept + indices[: len(second)]
    return places


def _sums(x: Tensor, places: Tensor, tokens: int) -> Tensor:
    """Adds the rows of ``x`` ``[B, N, C]`` that have the same of ``places`` ``[B, N]``; returns ``[B, tokens, C]``."""
    batch, _, channels = x.shape
    offsets = tokens * torch.arange(batch, device=x.device)[:, None]
    sums = x.new_zeros(batch * tokens, channels)
    return sums.index_add_(0, (places + offsets).flatten(), x.flatten(0, 1)).view(batch, tokens, channels)
