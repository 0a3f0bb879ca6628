"""Normalization of images within an accelerated model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitfast.errors import UserError


@dataclass(frozen=True)
class Normalization:
    """``(pixels / 255 - mean) / std`` for pixels from 0 to 255.

    Attributes:
        mean: mean of each channel, for values from 0 to 1.
        std: standard deviation of each channel, above 0.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, mean: Sequence[float] | None, std: Sequence[float] | None) -> Normalization | None:
        """Makes it from ``accelerate``'s arguments; None if both are None.

        Raises:
            UserError: the arguments are invalid.
        """
        if mean is None and std is None:
            return None
        for name, given in (("mean", mean), ("std", std)):
            if isinstance(given, (int, float)):
                example = f"{name}=({given}, {given}, {given})"
                raise UserError(f"{name}={given} must have a number for each channel, as in {example}")
            if given is not None and any(value > 1 for value in given):
                scaled = ", ".join(f"{value / 255:.3f}" for value in given)
                raise UserError(f"{name}={given} must be for values from 0 to 1; of 0 to 255 give {name}=({scaled})")
        if mean is None or std is None or len(mean) != len(std) or not all(value > 0 for value in std):
            raise UserError(
                f"mean={mean!r} and std={std!r} must both have a number for each channel, std above 0; "
                "for ImageNet mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)"
            )
        return cls(tuple(map(float, mean)), tuple(map(float, std)))

    def apply(self, pixels: Tensor) -> Tensor:
        """Normalizes ``pixels`` ``[B, channels, H, W]``, 0 to 255, to float32."""
        scale, shift = (values.view(-1, 1, 1).to(pixels.device) for values in self.coefficients())
        return pixels.to(torch.float32) * scale + shift

    def coefficients(self) -> tuple[Tensor, Tensor]:
        """Returns scale and shift ``[channels]``: ``pixels * scale + shift`` is the result."""
        mean, std = torch.tensor(self.mean, dtype=torch.float64), torch.tensor(self.std, dtype=torch.float64)
        return (1 / (255 * std)).float(), (-mean / std).float()
