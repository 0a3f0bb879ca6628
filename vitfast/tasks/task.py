"""What every task looks like to the training loop."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class Task(nn.Module):
    """A model together with its loss. The loop knows this much and no task by name.

    Args:
        model: what is saved, averaged and used later without the task.
        label_smoothing: share of the target that is spread over all classes, 0 <= share < 1. It is part of training
            only: in evaluation mode the loss is the plain cross-entropy, which can be compared between runs.

    Raises:
        ValueError: if ``label_smoothing`` is outside [0, 1).
    """

    model: nn.Module

    def __init__(self, model: nn.Module, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing is {label_smoothing}; it must be at least 0 and less than 1")
        self.model = model
        self.label_smoothing = label_smoothing

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Runs the model on a batch.

        Args:
            images: [B, C, H, W], floating point.
            labels: [B], int64, 0 <= label < K; or the share of each class [B, K], which mixed images have.

        Returns:
            ``loss``, a float32 scalar with gradient; ``output``, float32 logits [B, K] without; and, of a model with
            exits, ``exits``, the logits of each of them [E, B, K].
        """
        raise NotImplementedError(f"{type(self).__name__} must say what it learns")

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compares float32 logits [B, K] with labels, smoothed in training; returns the mean over the images."""
        smoothing = self.label_smoothing if self.training else 0.0
        return functional.cross_entropy(logits, labels, label_smoothing=smoothing)
