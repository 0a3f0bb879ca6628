"""What every task looks like to the training loop."""

from __future__ import annotations

from torch import Tensor, nn


class Task(nn.Module):
    """A model together with its loss. The loop knows this much and no task by name.

    Attributes:
        model: what is saved, averaged and used later without the task.
    """

    model: nn.Module

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Runs the model on a batch.

        Args:
            images: [B, C, H, W], floating point.
            labels: [B], int64, 0 <= label < K.

        Returns:
            ``loss``, a float32 scalar with gradient, and ``output``, float32 logits [B, K] without.
        """
        raise NotImplementedError(f"{type(self).__name__} must say what it learns")
