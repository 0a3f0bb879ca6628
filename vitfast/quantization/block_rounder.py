"""Block-scaled rounding: OCP Microscaling (MX) formats."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vitfast.formats import FloatFormat
from vitfast.quantization.rounders import FloatRounder

MX_BLOCK = 32
_SMALLEST_EXPONENT = -127  # of a scale of 8 exponent bits


@dataclass(frozen=True)
class BlockRounder:
    """Rounds blocks of neighbours to a narrow format times a shared power-of-two scale.

    The scale is the largest power of two that does not exceed the block's largest magnitude, divided by the format's;
    larger values saturate (OCP Microscaling Formats Specification 1.0, section 6.3). A block with a NaN or an infinity
    becomes NaN. Blocks run along the last dimension; in images and weights of convolutions along all dimensions but the
    first. The last block may be shorter. Gradients pass straight through.
    """

    format: FloatFormat
    block: int = MX_BLOCK  # elements that share a scale
    clip_gradients: bool = False  # elements beyond the format's largest value get no gradient

    @property
    def limits(self) -> tuple[float, float]:
        """Infinite, because each block has its scale."""
        return -math.inf, math.inf

    def __call__(self, x: Tensor) -> Tensor:
        if x.numel() == 0:
            return x
        rows = x.flatten(1) if x.dim() == 4 else x
        length = rows.shape[-1]
        padded = F.pad(rows, (0, -length % self.block))
        blocks = padded.reshape(*rows.shape[:-1], -1, self.block)
        scale = self._scale(blocks.detach().abs().amax(-1, keepdim=True))
        rounder = FloatRounder(replace(self.format, overflow="saturate"), "nearest_even", self.clip_gradients)
        finite = scale.isfinite()
        rounded = rounder(torch.where(finite, blocks / scale, 0.0)) * scale
        return rounded.flatten(-2)[..., :length].reshape(x.shape)

    def _scale(self, largest: Tensor) -> Tensor:
        """Returns the scales of the blocks; NaN for a block that is not finite."""
        exponent = torch.frexp(largest).exponent - 1 - (math.frexp(self.format.max_value)[1] - 1)
        scale = torch.ldexp(torch.ones_like(largest), exponent.clamp_min(_SMALLEST_EXPONENT))
        return torch.where(largest.isfinite(), torch.where(largest == 0, 1.0, scale), torch.nan)
