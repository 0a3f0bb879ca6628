"""Image classification: cross-entropy on the logits of a model."""

from __future__ import annotations

import torch
from torch import Tensor

from vitfast.tasks.task import Task


class ClassificationTask(Task):
    """A classifier with its cross-entropy: ``forward(images, labels)`` returns ``{"loss": scalar, "output": logits}``.

    A model that returns several logits while it trains (a distilled DeiT: class token and distillation token) is
    trained on all of them: the loss is the mean of the heads' losses, the output the mean of their logits, as DeiT
    averages its heads in evaluation (Touvron et al. 2021).

    Args:
        model: images [B, C, H, W] -> logits [B, K], or a tuple of them.
        label_smoothing: as in ``Task``.
    """

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Runs the model and compares with the labels; see ``Task.forward``."""
        output = self.model(images)
        heads = output if isinstance(output, (tuple, list)) else (output,)
        # float(): under autocast the logits are bf16, of which the cross-entropy would keep only 8 bits.
        heads = [logits.float() for logits in heads]
        losses = [self.cross_entropy(logits, labels) for logits in heads]
        return {"loss": _mean(losses), "output": _mean(heads).detach()}


def _mean(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.stack(tensors).mean(dim=0)
