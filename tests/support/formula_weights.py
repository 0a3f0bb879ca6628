"""Weights as a function of a parameter's name and an element's index, so that two programs initialize a model equally.

The element at index i of the tensor NAME is derived from the 64 bits z = mix(2^32 * crc32(NAME) + i), all modulo 2^64:

    mix(z):  z = z + 0x9E3779B97F4A7C15
             z = (z xor (z >> 30)) * 0xBF58476D1CE4E5B9
             z = (z xor (z >> 27)) * 0x94D049BB133111EB
             z =  z xor (z >> 31)

(SplitMix64, Steele et al., 2014) as u = 2 * (z >> 11) / 2^53 - 1, which is uniform in [-1, 1). Its scale depends on the
shape, so that the variance of a layer's output stays near 1 and no value equals its initialization:

=========================================  ===========================================================================
shape                                      number, rounded to float32
=========================================  ===========================================================================
one dimension, NAME ends in ``weight`` or  1 + u / 4
``running_var``
one dimension, any other                   u / 4
first dimension 1: tokens, positions, …    u / 2
four dimensions, kernels                   u * sqrt(3 / numbers in a row) / 4^(row modulo 4): rows of other sizes, so
                                           that the epsilon of their standardization shows
NAME ends in ``kqv.weight``                u * sqrt(3 / numbers in a row) / 4: T2T-ViT's performers take exponentials
                                           of the squares of what it gives
any other, matrices                        u * sqrt(3 / numbers in a row)
=========================================  ===========================================================================

Images are drawn in the same way, as ``images``: 1.5 u.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


def formula_state(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Makes the tensors of a state dict from their names and shapes."""
    return {name: formula_weight(name, shape) for name, shape in shapes.items()}


def formula_weight(name: str, shape: Sequence[int]) -> Tensor:
    """Makes one tensor of a state dict, in float32."""
    u = formula_numbers(name, math.prod(shape)).reshape(shape)
    if len(shape) == 1:
        numbers = u / 4 + (1.0 if name.endswith(("weight", "running_var")) else 0.0)
    elif shape[0] == 1:
        numbers = u / 2
    else:
        numbers = u * math.sqrt(3 / math.prod(shape[1:]))
        if name.endswith("kqv.weight"):
            numbers /= 4
        if len(shape) == 4:
            numbers /= 4.0 ** (np.arange(shape[0]) % 4).reshape(-1, 1, 1, 1)
    return torch.from_numpy(np.asarray(numbers, dtype=np.float32))


def formula_images(shape: Sequence[int]) -> Tensor:
    """Makes images ``[B, C, height, width]``."""
    return torch.from_numpy((1.5 * formula_numbers("images", math.prod(shape))).reshape(shape).astype(np.float32))


def formula_numbers(name: str, count: int) -> np.ndarray:
    """Makes ``count`` numbers u, in float64."""
    z = np.arange(count, dtype=np.uint64) + np.uint64(zlib.crc32(name.encode()) << 32)
    z += np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)) * 2.0**-52 - 1.0
