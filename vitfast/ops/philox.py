"""The counter-based random numbers of stochastic rounding in PyTorch; csrc/common/philox.h is the kernels' copy."""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

BLOCK = 64  # elements that share 16 counters: element i has counter (i // 64) * 16 + i % 16 and word (i // 16) % 4
LANES = 16


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """The high and low 32 bits of a product of 32-bit numbers, in int64 without overflow."""
    low_product = a * (b & 0xFFFF)
    high_product = a * (b >> 16) + (low_product >> 16)
    return high_product >> 16, ((high_product & 0xFFFF) << 16) | (low_product & 0xFFFF)


def philox_uint32(seed: Tensor, numel: int) -> Tensor:
    """Philox 4x32-10 (Salmon et al., 2011): ``numel`` words of 32 random bits, as int64, a pure function of the seed.

    Args:
        seed: an int64 scalar: the key.
        numel: how many words.
    """
    blocks = (numel + BLOCK - 1) // BLOCK
    counter = torch.arange(blocks * LANES, dtype=torch.int64, device=seed.device)
    zeros = torch.zeros_like(counter)
    words = [counter & _MASK, counter >> 32, zeros, zeros]
    key = [seed & _MASK, (seed >> 32) & _MASK]
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], words[0])
        high1, low1 = _multiply(_MULTIPLIERS[1], words[2])
        words = [high1 ^ words[1] ^ key[0], low1, high0 ^ words[3] ^ key[1], low0]
        key = [(k + increment) & _MASK for k, increment in zip(key, _KEY_INCREMENTS, strict=True)]
    by_word = torch.stack([word.view(blocks, LANES) for word in words], 1)  # [blocks, 4, 16]
    return by_word.reshape(-1)[:numel]
