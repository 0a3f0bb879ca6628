"""Loss and accuracy over many batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, SumMetric
from torchmetrics.classification import MulticlassAccuracy

from vitfast.errors import UserError


class ClassificationMeter:
    """Adds up loss, top-1 and top-5 of the images seen so far; its state can be saved and restored exactly.

    Top-5 is top-K for fewer than five classes. Nothing waits for the device before ``compute``.

    Args:
        num_classes: K.
        device: where the outputs lie.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.loss_sum: Metric = SumMetric(nan_strategy="disable").set_dtype(torch.float64).to(device)
        self.top1: Metric = self._accuracy(num_classes, 1).to(device)
        self.top5: Metric = self._accuracy(num_classes, min(5, num_classes)).to(device)
        self.images = 0

    @staticmethod
    def _accuracy(num_classes: int, top_k: int) -> Metric:
        return MulticlassAccuracy(num_classes, top_k=top_k, average="micro", validate_args=False)

    @property
    def _metrics(self) -> dict[str, Metric]:
        return {"loss_sum": self.loss_sum, "top1": self.top1, "top5": self.top5}

    def update(self, loss: Tensor, output: Tensor, labels: Tensor) -> None:
        """Adds a batch: mean loss (scalar), logits [B, K], labels [B]."""
        self.images += labels.shape[0]
        self.loss_sum.update(loss.detach().double() * labels.shape[0])
        self.top1.update(output, labels)
        self.top5.update(output, labels)

    def compute(self) -> dict[str, float]:
        """Returns ``loss`` (mean over the images), ``top1`` and ``top5`` (0..1); NaN before the first batch."""
        if self.images == 0:
            return dict.fromkeys(("loss", "top1", "top5"), float("nan"))
        return {
            "loss": float(self.loss_sum.compute()) / self.images,
            # rounded: the metric is a float32, whose 0.05 reads 0.05000000074505806
            "top1": round(float(self.top1.compute()), 7),
            "top5": round(float(self.top5.compute()), 7),
        }

    def reset(self) -> None:
        """Forgets everything."""
        self.images = 0
        for metric in self._metrics.values():
            metric.reset()

    def state_dict(self) -> dict[str, Any]:
        """Returns tensors and plain numbers from which ``load_state_dict`` restores the meter exactly."""
        state: dict[str, Any] = {"images": self.images}
        for name, metric in self._metrics.items():
            values = ((key, torch.as_tensor(value)) for key, value in metric.metric_state.items())
            state[name] = {key: value.detach().cpu().clone() for key, value in values}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned.

        Raises:
            UserError: if the state is another meter's.
        """
        self.reset()
        self.images = int(state["images"])
        for name, metric in self._metrics.items():
            saved = state.get(name, {})
            if set(saved) != set(metric.metric_state):
                raise UserError(f"the saved metrics lack {name!r} of this version of vitfast; start a new run")
            for key, value in saved.items():
                setattr(metric, key, value.to(metric.device))
            metric._update_count = int(self.images > 0)  # torchmetrics warns about compute() before update()
