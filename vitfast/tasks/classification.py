"""Image classification: cross-entropy on the logits of a model."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitfast.tasks.task import Task


class ClassificationTask(Task):
    """A classifier with its cross-entropy: ``forward(images, labels)`` returns ``{"loss": scalar, "output": logits}``.

    A model that returns several logits while it trains (a distilled DeiT: class token and distillation token) is
    trained on all of them: the loss is the mean of the heads' losses, the output the mean of their logits, as DeiT
    averages its heads in evaluation (Touvron et al. 2021).

    Args:
        model: images [B, C, H, W] -> logits [B, K], or a tuple of them.
        label_smoothing: share of the target that is spread over all classes, 0 <= share < 1. It is part of training
            only: in evaluation mode the loss is the plain cross-entropy, which can be compared between runs.

    Raises:
        ValueError: if ``label_smoothing`` is outside [0, 1).
    """

    def __init__(self, model: nn.Module, label_smoothing: float = 0.0) -> None:
        super().__init__(model)
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing is {label_smoothing}; it must be at least 0 and less than 1")
        self.label_smoothing = label_smoothing

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Runs the model and compares with the labels.

        Args:
            images: [B, C, H, W], floating point.
            labels: [B], int64, 0 <= label < K; or the share of each class [B, K], which mixed images have.

        Returns:
            ``loss``, a float32 scalar with gradient, and ``output``, the float32 logits [B, K], detached.
        """
        output = self.model(images)
        heads = output if isinstance(output, (tuple, list)) else (output,)
        smoothing = self.label_smoothing if self.training else 0.0
        # float(): under autocast the logits are bf16, of which the cross-entropy would keep only 8 bits.
        heads = [logits.float() for logits in heads]
        losses = [functional.cross_entropy(logits, labels, label_smoothing=smoothing) for logits in heads]
        return {"loss": _mean(losses), "output": _mean(heads).detach()}


def _mean(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.stack(tensors).mean(dim=0)
