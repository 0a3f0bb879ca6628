"""A frozen model that others learn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Teacher:
    """A trained model in evaluation mode, which answers for the images that its student sees.

    It is no part of the student: neither saved, averaged nor trained with it, and copies of a task share it.

    Args:
        model: images [B, C, H, W] -> logits [B, K]; put into evaluation mode, its parameters take no gradient.
        mean: mean of each channel that the teacher's images were normalised with.
        std: their standard deviation.
        student_mean: the same of the student's images, from which they are converted.
        student_std: the same.
    """

    def __init__(
        self,
        model: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        student_mean: Sequence[float],
        student_std: Sequence[float],
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        device = next(model.parameters()).device
        own_mean, own_std, mean_C, std_C = (
            torch.tensor(list(values), dtype=torch.float64) for values in (mean, std, student_mean, student_std)
        )
        # (x * student_std + student_mean - mean) / std
        self._scale_C11 = (std_C / own_std).float().view(-1, 1, 1).to(device)
        self._shift_C11 = ((mean_C - own_mean) / own_std).float().view(-1, 1, 1).to(device)
        self._same = torch.equal(own_mean, mean_C) and torch.equal(own_std, std_C)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Returns the logits [B, K], float32, for images [B, C, H, W] as the student sees them, mixed or not."""
        logits: Tensor = self.model(images if self._same else images * self._scale_C11 + self._shift_C11)
        return logits.float()

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        return self
