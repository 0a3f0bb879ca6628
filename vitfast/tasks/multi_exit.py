"""Classification by a model with several exits."""

from __future__ import annotations

import torch
from torch import Tensor

from vitfast.models import ImageModel
from vitfast.tasks.classification import ClassificationTask
from vitfast.tasks.task import Task


class MultiExitTask(Task):
    """A model with exits: in training the loss is the sum of the exits' cross-entropies, with equal weights.

    So does the Dynamic Vision Transformer (Wang et al., "Not All Images are Worth 16x16 Words", 2021). In evaluation
    the loss is that of the last exit alone, which can be compared with a model without exits.

    Args:
        model: images [B, C, H, W] -> a tuple of logits [B, K], one for each exit, the earliest first.
        label_smoothing: as in ``Task``.
    """

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Runs all exits and compares them with the labels; see ``Task.forward``. ``output`` is the last exit's."""
        exits = [logits.float() for logits in self.model(images)]
        compared = exits if self.training else exits[-1:]
        loss = torch.stack([self.cross_entropy(logits, labels) for logits in compared]).sum()
        return {"loss": loss, "output": exits[-1].detach(), "exits": torch.stack(exits).detach()}


def create_plain_task(model: ImageModel, label_smoothing: float = 0.0) -> Task:
    """Returns the classification task of a model: ``MultiExitTask`` if it has several exits."""
    kind = MultiExitTask if model.num_exits > 1 else ClassificationTask
    return kind(model, label_smoothing)
