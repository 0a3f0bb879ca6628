"""Rounding to fixed-point numbers, in plain torch: the definition that a kernel has to meet."""

from __future__ import annotations

from torch import Tensor

from vitfast.quantization.straight_through import round_to_integers


def quantize_fixed(x: Tensor, word_length: int, fraction_length: int, *, clip_gradients: bool = False) -> Tensor:
    """Rounds to the nearest multiple of ``2**-fraction_length``, half to even, and saturates.

    The values are ``k * 2**-fraction_length`` for whole k, ``-2**(word_length-1) <= k < 2**(word_length-1)``. Scaling
    by a power of two is exact in float32, so only the rounding rounds. (QPyTorch 0.3.0 rounds the same on the CPU, but
    half away from zero on CUDA.)

    Args:
        x: any shape, floating point.
        word_length: bits of a number, with its sign, 2 to 24.
        fraction_length: bits after the binary point, -64 to 64; more than ``word_length`` is allowed.
        clip_gradients: whether saturated elements get no gradient; otherwise all gradients pass straight through.

    Returns:
        A new tensor of x's shape and type; NaN stays NaN.

    Raises:
        ValueError: a length is out of range.
    """
    check_fixed_lengths(word_length, fraction_length)
    scale = 2.0**fraction_length
    limit = 2 ** (word_length - 1)
    return round_to_integers(x * scale, -limit, limit - 1, clip_gradients=clip_gradients) / scale


def check_fixed_lengths(word_length: int, fraction_length: int) -> None:
    """Raises ValueError unless float32 holds every number of these lengths exactly."""
    if not 2 <= word_length <= 24:
        raise ValueError(f"word_length must be 2 to 24 bits, the sign among them; got {word_length}")
    if not -64 <= fraction_length <= 64:
        raise ValueError(f"fraction_length must be -64 to 64 bits; got {fraction_length}")
