"""Classification that stops at the first exit that is confident enough."""

from __future__ import annotations

import torch
from torch import Tensor

from vitfast.inference import EarlyExit
from vitfast.tasks.task import Task


class EarlyExitTask(Task):
    """A model with exits, measured as it runs with early exit; it cannot be trained.

    Args:
        model: the model with its thresholds.

    Attributes:
        left: how many images have left at each exit so far, ``[E]``.
    """

    left: Tensor

    def __init__(self, model: EarlyExit) -> None:
        super().__init__(model)
        self.register_buffer("left", torch.zeros(len(model.thresholds), dtype=torch.int64), persistent=False)
        self.eval()

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Runs the exits that are needed and compares with the labels; see ``Task.forward``."""
        logits, exit_index = self.model(images)
        self.left += exit_index.bincount(minlength=len(self.left))
        return {"loss": self.cross_entropy(logits.float(), labels), "output": logits.float()}
