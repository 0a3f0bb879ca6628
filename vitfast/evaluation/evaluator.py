"""One pass over a split without learning."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassCalibrationError, MulticlassConfusionMatrix

from vitfast.device import autocast, synchronize
from vitfast.evaluation.meter import ClassificationMeter

CALIBRATION_BINS = 15


@dataclass(frozen=True)
class Evaluation:
    """What ``evaluate`` measured.

    Attributes:
        images: how many there were; every image of the split counts exactly once.
        loss: mean over the images.
        top1: share of images whose largest logit is the label's, 0..1.
        top5: share whose label is among the five largest (all, for fewer than five classes).
        images_per_s: reading, transfer and model together.
        exits: top-1 of each exit, 0..1; None for a model with one output.
        confusion: [K, K] counts, rows are labels, columns predictions; None unless detailed.
        calibration_error: expected calibration error (Guo et al. 2017, 15 equal bins, L1), 0..1; None unless detailed.
    """

    images: int
    loss: float
    top1: float
    top5: float
    images_per_s: float
    exits: list[float] | None = None
    confusion: Tensor | None = None
    calibration_error: float | None = None

    def metrics(self) -> dict[str, Any]:
        """The figures that a line of ``metrics.jsonl`` has."""
        figures = {"loss": self.loss, "top1": self.top1, "top5": self.top5, "images_per_s": round(self.images_per_s, 1)}
        return figures if self.exits is None else {**figures, "exits": self.exits}


def evaluate(
    task: nn.Module,
    loader: DataLoader[Any],
    *,
    num_classes: int,
    device: torch.device,
    num_exits: int = 1,
    precision: str = "fp32",
    detailed: bool = False,
    should_stop: Callable[[], bool] = bool,
) -> Evaluation | None:
    """Runs a task over all batches in evaluation mode; the mode it was in is put back.

    Where several ranks work together, each has its own part of every batch (which may be empty), and all get the
    figures of all images; ``detailed`` is for a single process.

    Args:
        task: ``forward(images, labels) -> {"loss", "output"}``, on ``device``.
        loader: gives (images [B, C, H, W], labels [B]).
        num_classes: K.
        device: where it runs.
        num_exits: of the model.
        precision: ``fp32``, or ``bf16`` or ``fp16`` (autocast).
        detailed: also count confusions and measure calibration.
        should_stop: asked before each batch; when it says True the pass is given up.

    Returns:
        The figures, or None if the pass was given up.
    """
    meter = ClassificationMeter(num_classes, device, num_exits)
    details = _Details(num_classes, device) if detailed else None
    was_training = task.training
    task.eval()
    start = time.perf_counter()
    try:
        with torch.inference_mode(), autocast(device, precision):
            for images, labels in loader:
                if should_stop():
                    return None
                if len(labels) == 0:
                    continue  # the part of a rank that has none of the last images
                images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
                result = task(images, labels)
                meter.update(result["loss"], result["output"], labels, result.get("exits"))
                if details is not None:
                    details.update(result["output"], labels)
        synchronize(device)
    finally:
        task.train(was_training)
    seconds = time.perf_counter() - start
    figures: dict[str, Any] = {**meter.compute(), **(details.compute() if details is not None else {})}
    return Evaluation(images_per_s=figures["images"] / seconds, **figures)


class _Details:
    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.confusion = MulticlassConfusionMatrix(num_classes, validate_args=False).to(device)
        self.calibration = MulticlassCalibrationError(
            num_classes, n_bins=CALIBRATION_BINS, norm="l1", validate_args=False
        ).to(device)

    def update(self, output: Tensor, labels: Tensor) -> None:
        self.confusion.update(output, labels)
        # Probabilities, not logits: torchmetrics would guess which of the two it was given.
        self.calibration.update(output.softmax(dim=1), labels)

    def compute(self) -> dict[str, Any]:
        return {"confusion": self.confusion.compute().cpu(), "calibration_error": float(self.calibration.compute())}
