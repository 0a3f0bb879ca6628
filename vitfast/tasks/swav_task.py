"""Self-supervised training by SwAV (Caron et al., 2020, arXiv:2006.09882)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfast.layers import SwavHead
from vitfast.models.multi_crop import Crops, check_trunk, crop_features
from vitfast.tasks.classification import Task
from vitfast.tasks.swav import EmbeddingQueue, swav_loss


class SwavTask(Task):
    """A headless model that learns without labels to predict the assignments of other crops of its images.

    As in the original code, the prototypes are normalized before each forward pass, the head runs once over all crops,
    so that its BatchNorm has the statistics of all of them, and the queue is used once it is full.

    Args:
        model: the trunk, without a head: crops ``[B, C, size, size]`` -> features ``[B, F]``.
        head: features -> embeddings and scores, one for each layer of prototypes, whose losses are averaged.
        assign_crops: the crops whose assignments are computed.
        temperature: of ``swav_loss``.
        epsilon: of ``sinkhorn``.
        iterations: of ``sinkhorn``.
        freeze_prototypes_steps: steps at the start in which the prototypes are not trained.
        hard_assignment_steps: steps at the start with hard assignments.
        queue_length: embeddings of this process in the queue for each of ``assign_crops``; 0: no queue.
        queue_start_step: the step, from 0, after which the queue is filled.
        double_precision: whether loss and assignments are computed in float64.

    Raises:
        UserError: the model does not take crops of several sizes.
    """

    head: SwavHead

    def __init__(
        self,
        model: nn.Module,
        head: SwavHead,
        *,
        assign_crops: Sequence[int] = (0, 1),
        temperature: float = 0.1,
        epsilon: float = 0.05,
        iterations: int = 3,
        freeze_prototypes_steps: int = 0,
        hard_assignment_steps: int = 0,
        queue_length: int = 0,
        queue_start_step: int = 0,
        double_precision: bool = False,
    ) -> None:
        super().__init__(model)
        check_trunk(model)
        self.head = head
        self.assign_crops = tuple(assign_crops)
        self.freeze_prototypes_steps = freeze_prototypes_steps
        self.hard_assignment_steps = hard_assignment_steps
        self.queue_start_step = queue_start_step
        self.double_precision = double_precision
        self._loss_options: dict[str, Any] = {"temperature": temperature, "epsilon": epsilon, "iterations": iterations}
        self._prototypes = [head.get_submodule(f"prototypes{index}") for index in range(head.num_prototype_layers)]
        self._queue: EmbeddingQueue | None = None
        if queue_length:
            weight_KD = self._weight(0)
            self._queue = EmbeddingQueue(
                len(self.assign_crops), queue_length, weight_KD.shape[1], weight_KD.device, weight_KD.dtype
            )
        self._scores: list[Tensor] = []

    def forward(self, images: Crops, labels: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        """Computes the loss of a batch; see ``Task.forward``. The labels are not used, and there is no ``output``."""
        self._normalize_prototypes()
        embeddings, *scores = self.head(crop_features(self.model, images.tensors))
        self._scores = [one.detach() for one in scores]
        count = len(images)
        queue = self._queue if self._queue is not None and self._queue.is_full else None
        losses = []
        for layer, all_scores in enumerate(scores):
            if self.double_precision:
                all_scores = all_scores.double()
            earlier = None
            if queue is not None:
                weight = self._weight(layer).detach()
                earlier = [F.linear(embeddings_LD, weight) for embeddings_LD in queue.embeddings]
            losses.append(
                swav_loss(
                    all_scores.split(count),
                    assign_crops=self.assign_crops,
                    queue_scores=earlier,
                    hard=self.step < self.hard_assignment_steps,
                    **self._loss_options,
                )
            )
        if self._queue is not None and self.training and self.step >= self.queue_start_step:
            crops = embeddings.detach().split(count)
            self._queue.add(torch.stack([crops[index] for index in self.assign_crops]))
        return {"loss": torch.stack(losses).mean()}

    def after_backward(self) -> None:
        """Drops the gradients of frozen prototypes, so that the optimizer skips them."""
        if self.step < self.freeze_prototypes_steps:
            for prototypes in self._prototypes:
                for parameter in prototypes.parameters():
                    parameter.grad = None

    def shared_state(self) -> dict[str, Tensor]:
        """Returns the weights of the head."""
        return dict(self.head.state_dict())

    def load_shared_state(self, state: dict[str, Tensor]) -> None:
        """Restores ``shared_state``."""
        self.head.load_state_dict(state)

    def rank_state(self) -> dict[str, Tensor]:
        """Returns the queue of this process and how many of its embeddings have been added."""
        if self._queue is None:
            return {}
        return {"queue": self._queue.embeddings.cpu(), "filled": torch.tensor(self._queue.filled)}

    def load_rank_state(self, state: dict[str, Tensor]) -> None:
        """Restores ``rank_state``."""
        if self._queue is not None:
            self._queue.embeddings.copy_(state["queue"])
            self._queue.filled = min(int(state["filled"]), self._queue.embeddings.shape[1])

    def diagnostics(self) -> dict[str, Tensor]:
        """Returns the scores of the last batch, ``[number of crops * B, K]`` for each layer of prototypes."""
        return {f"scores{layer}": scores.float().cpu() for layer, scores in enumerate(self._scores)}

    def _weight(self, layer: int) -> Tensor:
        weight: Tensor = self._prototypes[layer].weight  # type: ignore[assignment]
        return weight

    @torch.no_grad()
    def _normalize_prototypes(self) -> None:
        for layer in range(len(self._prototypes)):
            weight = self._weight(layer)
            weight.copy_(F.normalize(weight, dim=1))
