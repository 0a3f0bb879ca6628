"""Loss and accuracy accumulated over batches."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, SumMetric
from torchmetrics.classification import MulticlassAccuracy

from vitfast.errors import UserError


class ClassificationMeter:
    """Accumulates loss, top-1 and top-5; its state can be saved and restored exactly.

    Top-5 is top-K for fewer than five classes. ``update`` does not synchronize with the device. In distributed training
    each rank adds its images, and ``compute`` returns the metrics of all images on every rank.

    Args:
        num_classes: K; 0: the loss alone is accumulated.
        device: of the outputs.
        num_exits: number of exits, for each of which top-1 is computed; 1: the model has one output.
    """

    def __init__(self, num_classes: int, device: torch.device, num_exits: int = 1) -> None:
        accuracy = partial(MulticlassAccuracy, num_classes, average="micro", validate_args=False)
        self._metrics: dict[str, Metric] = {
            "images": SumMetric(nan_strategy="disable").set_dtype(torch.float64),
            "loss_sum": SumMetric(nan_strategy="disable").set_dtype(torch.float64),
        }
        if num_classes:
            self._metrics |= {"top1": accuracy(), "top5": accuracy(top_k=min(5, num_classes))}
        self._exits = [f"exit{number}" for number in range(1, num_exits + 1)] if num_exits > 1 else []
        self._metrics |= {name: accuracy() for name in self._exits}
        for metric in self._metrics.values():
            metric.to(device)

    def update(self, loss: Tensor, output: Tensor | None, labels: Tensor, exits: Tensor | None = None) -> None:
        """Adds a batch: mean loss (scalar), logits [B, K] or None without classes, labels [B], exits [E, B, K]."""
        count = labels.shape[0]
        if count == 0:
            return
        self._metrics["images"].update(torch.tensor(float(count)))
        self._metrics["loss_sum"].update(loss.detach().double() * count)
        if output is not None:
            self._metrics["top1"].update(output, labels)
            self._metrics["top5"].update(output, labels)
        for name, logits in zip(self._exits, () if exits is None else exits, strict=True):
            self._metrics[name].update(logits, labels)

    def compute(self) -> dict[str, Any]:
        """Returns ``images``, mean ``loss``, ``top1`` and ``top5`` (0..1), and ``exits``, the top-1 of each exit.

        All but ``images`` are NaN before the first batch. All ranks must call it.
        """
        for metric in self._metrics.values():
            # suppresses torchmetrics' warning before the first batch
            metric._update_count = max(metric._update_count, 1)
        values = {name: float(metric.compute()) for name, metric in self._metrics.items()}
        images = int(values["images"])
        share = {name: float("nan") if images == 0 else round(value, 7) for name, value in values.items()}
        figures: dict[str, Any] = {
            "images": images,
            "loss": values["loss_sum"] / images if images else float("nan"),
            # the metric is float32: 0.05 would print as 0.05000000074505806
            **{name: share[name] for name in ("top1", "top5") if name in share},
        }
        if self._exits:
            figures["exits"] = [share[name] for name in self._exits]
        return figures

    def reset(self) -> None:
        """Resets all metrics."""
        for metric in self._metrics.values():
            metric.reset()

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of this rank as tensors."""
        return {
            name: {key: torch.as_tensor(value).detach().cpu().clone() for key, value in metric.metric_state.items()}
            for name, metric in self._metrics.items()
        }

    def load_state_dict(self, *states: dict[str, Any]) -> None:
        """Restores the state of one rank, or the sum of the states of several ranks.

        Raises:
            UserError: a metric is missing from the state.
        """
        self.reset()
        for name, metric in self._metrics.items():
            for state in states:
                saved = state.get(name, {})
                if set(saved) != set(metric.metric_state):
                    raise UserError(f"the saved metrics lack {name!r} of this version of vitfast; start a new run")
                for key, value in saved.items():
                    setattr(metric, key, getattr(metric, key) + value.to(metric.device))
