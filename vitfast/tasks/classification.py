"""Image classification with one output, with several exits, and with early exit."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitfast.inference import EarlyExit
from vitfast.models import ImageModel


class Task(nn.Module):
    """A model together with its loss: the interface that the training loop uses.

    Args:
        model: the part that is saved, averaged and used after training; images [B, C, H, W] -> logits [B, K], or a
            tuple of them, for ``MultiExitTask`` one for each exit, the earliest first.
        label_smoothing: share of the target that is spread over all classes, 0 <= share < 1. It applies in training
            only: the evaluation loss is the plain cross-entropy, so that runs are comparable.

    Attributes:
        step: completed optimizer steps; the training loop sets it.

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
        self.step = 0

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Runs the model on a batch.

        Args:
            images: [B, C, H, W], floating point.
            labels: [B], int64, 0 <= label < K; or class probabilities [B, K] for mixed images.

        Returns:
            ``loss``, a float32 scalar with gradient; ``output``, float32 logits [B, K] without; and, for a model with
            exits, ``exits``, the logits of each exit [E, B, K].
        """
        raise NotImplementedError(f"{type(self).__name__} must implement forward")

    def after_backward(self) -> None:
        """Changes gradients before they are clipped and used; by default none."""

    def shared_state(self) -> dict[str, Tensor]:
        """Returns what a checkpoint saves beside the model, equal on all ranks; by default nothing."""
        return {}

    def load_shared_state(self, state: dict[str, Tensor]) -> None:
        """Restores ``shared_state``."""

    def rank_state(self) -> dict[str, Tensor]:
        """Returns what a checkpoint saves for each rank; by default nothing."""
        return {}

    def load_rank_state(self, state: dict[str, Tensor]) -> None:
        """Restores ``rank_state``."""

    def diagnostics(self) -> dict[str, Tensor]:
        """Returns what explains a non-finite loss of the last batch; by default nothing."""
        return {}

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the mean cross-entropy of float32 logits [B, K], with label smoothing in training."""
        smoothing = self.label_smoothing if self.training else 0.0
        return functional.cross_entropy(logits, labels, label_smoothing=smoothing)


class ClassificationTask(Task):
    """A classifier with the cross-entropy loss.

    A model that returns several logits in training (a distilled DeiT: class token and distillation token) is trained
    on all of them: the loss is the mean of the heads' losses, the output the mean of their logits, as DeiT averages its
    heads in evaluation (Touvron et al. 2021).
    """

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        output = self.model(images)
        heads = output if isinstance(output, (tuple, list)) else (output,)
        # float(): under autocast the logits are bf16, and the cross-entropy would keep only 8 bits
        heads = [logits.float() for logits in heads]
        losses = [self.cross_entropy(logits, labels) for logits in heads]
        return {"loss": _mean(losses), "output": _mean(heads).detach()}


class MultiExitTask(Task):
    """A model with exits; the training loss is the unweighted sum of the cross-entropies of all exits.

    This is the loss of the Dynamic Vision Transformer (Wang et al., "Not All Images are Worth 16x16 Words", 2021). The
    evaluation loss is that of the last exit, which is comparable with a model without exits; so is ``output``.
    """

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        exits = [logits.float() for logits in self.model(images)]
        compared = exits if self.training else exits[-1:]
        loss = torch.stack([self.cross_entropy(logits, labels) for logits in compared]).sum()
        return {"loss": loss, "output": exits[-1].detach(), "exits": torch.stack(exits).detach()}


class EarlyExitTask(Task):
    """Evaluates a model that stops at the first confident exit; it cannot be trained.

    Attributes:
        left: number of images that have left at each exit so far, ``[E]``.
    """

    left: Tensor

    def __init__(self, model: EarlyExit) -> None:
        super().__init__(model)
        self.register_buffer("left", torch.zeros(len(model.thresholds), dtype=torch.int64), persistent=False)
        self.eval()

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits, exit_index = self.model(images)
        self.left += exit_index.bincount(minlength=len(self.left))
        return {"loss": self.cross_entropy(logits.float(), labels), "output": logits.float()}


def create_plain_task(model: ImageModel, label_smoothing: float = 0.0) -> Task:
    """Returns the classification task of a model: ``MultiExitTask`` if it has several exits."""
    kind = MultiExitTask if model.num_exits > 1 else ClassificationTask
    return kind(model, label_smoothing)


def _mean(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.stack(tensors).mean(dim=0)
