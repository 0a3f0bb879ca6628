"""Options of the rounding operators: their names, and the integers that the raw operators take."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from vitfast.formats import FloatFormat

Rounding = Literal["nearest_even", "nearest_away", "toward_zero", "stochastic", "qtorch"]
FixedOverflow = Literal["saturate", "wrap", "unbounded"]

# csrc/common/float_format.h and fixed_format.h have the same codes
ROUNDING_CODES: dict[str, int] = {"nearest_even": 0, "nearest_away": 1, "toward_zero": 2, "stochastic": 3}
OVERFLOW_CODES: dict[str, int] = {"inf": 0, "nan": 1, "saturate": 2}
FIXED_OVERFLOW_CODES: dict[str, int] = {"saturate": 0, "wrap": 1, "unbounded": 2}
QTORCH_NEAREST = 4  # the result of QPyTorch 0.3.0's CPU code, including its intermediate roundings


def float_rounding(format: FloatFormat, rounding: str = "nearest_even", overflow: str | None = None) -> list[int]:
    """Checks a format and its options, as in ``quantize_float``, and encodes them for the raw operators.

    The encoding is that of ``csrc/quantize/rounding_arguments.h``.
    """
    if rounding not in ROUNDING_CODES and rounding != "qtorch":
        raise ValueError(f"rounding must be one of {', '.join(ROUNDING_CODES)}, qtorch; got {rounding!r}")
    if not isinstance(format, FloatFormat):
        raise TypeError(f"format must be a vitfast.FloatFormat such as FloatFormat.fp16(), got {type(format).__name__}")
    if rounding == "qtorch" and (overflow is not None or not format.is_qtorch):
        raise ValueError(
            "rounding='qtorch' requires FloatFormat.qtorch(e, m) with at most 22 mantissa bits and overflow=None, got "
            f"{format} and overflow={overflow!r}"
        )
    overflow = format.overflow if overflow is None else overflow
    if overflow not in OVERFLOW_CODES:
        raise ValueError(f"overflow must be one of {', '.join(OVERFLOW_CODES)}, got {overflow!r}")
    if (overflow == "inf" and not format.has_inf) or (overflow == "nan" and not format.has_nan):
        raise ValueError(f"overflow={overflow!r} is no value of {format}; use overflow='saturate'")
    return [
        format.exponent_bits,
        format.mantissa_bits,
        format.max_bits,
        int(format.has_inf),
        int(format.has_nan),
        int(format.signed_zero),
        OVERFLOW_CODES[overflow],
        ROUNDING_CODES.get(rounding, QTORCH_NEAREST),
    ]


class StraightThrough(torch.autograd.Function):
    """Returns its second argument; the gradient goes to the first one (Bengio et al., 2013)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Tensor) -> Tensor:
        """Returns ``rounded``."""
        return rounded.view_as(rounded)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Passes the gradient to ``x``."""
        return grad, None


def straight_through(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """The autograd formula of the rounding operators."""
    return grad, None, None


# --- stochastic rounding ---


def seed_tensor(seed: int | Tensor | None, x: Tensor) -> Tensor:
    """Returns the seed as one int64 on x's device; None draws it from torch's generator."""
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.numel() != 1:
            raise TypeError(f"seed must be one int64, got {seed.dtype} of shape {list(seed.shape)}")
        return seed.to(x.device)
    if seed is None:
        return torch.randint(0, 2**63 - 1, (), dtype=torch.int64, device=x.device)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an integer, an int64 tensor or None, got {type(seed).__name__}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be at least 0 and below 2**63, got {seed}")
    return torch.full((), seed, dtype=torch.int64, device=x.device)


# Philox 4x32-10 (Salmon et al., 2011); the kernels have the same generator in csrc/common/philox.h
_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_BLOCK = 64  # elements that share 16 counters: element i has counter (i // 64) * 16 + i % 16 and word (i // 16) % 4
_LANES = 16


def philox_uint32(seed: Tensor, numel: int) -> Tensor:
    """Returns ``numel`` words of 32 random bits as int64: a pure function of the seed, an int64 scalar."""
    blocks = (numel + _BLOCK - 1) // _BLOCK
    counter = torch.arange(blocks * _LANES, dtype=torch.int64, device=seed.device)
    zeros = torch.zeros_like(counter)
    words = [counter & _MASK, counter >> 32, zeros, zeros]
    key = [seed & _MASK, (seed >> 32) & _MASK]
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], words[0])
        high1, low1 = _multiply(_MULTIPLIERS[1], words[2])
        words = [high1 ^ words[1] ^ key[0], low1, high0 ^ words[3] ^ key[1], low0]
        key = [(k + increment) & _MASK for k, increment in zip(key, _KEY_INCREMENTS, strict=True)]
    by_word = torch.stack([word.view(blocks, _LANES) for word in words], 1)  # [blocks, 4, 16]
    return by_word.reshape(-1)[:numel]


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """The high and low 32 bits of a product of 32-bit numbers, in int64 without overflow."""
    low_product = a * (b & 0xFFFF)
    high_product = a * (b >> 16) + (low_product >> 16)
    return high_product >> 16, ((high_product & 0xFFFF) << 16) | (low_product & 0xFFFF)


def random_like(x: Tensor, seed: Tensor | None) -> Tensor | None:
    """Random words in x's shape; None without a seed."""
    return None if seed is None else philox_uint32(seed, x.numel()).view(x.shape)
