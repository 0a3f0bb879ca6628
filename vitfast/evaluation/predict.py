"""Class predictions of a checkpoint for image files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vitfast.device import autocast
from vitfast.evaluation.evaluate import create_early_exit
from vitfast.runs.trained_model import TrainedModel


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image.

    Attributes:
        path: the file.
        classes: names, the most probable first.
        probabilities: of these classes, 0..1.
        exit_number: the exit at which the image left, from 1; None without early exit.
    """

    path: Path
    classes: list[str]
    probabilities: list[float]
    exit_number: int | None = None


def predict(
    trained: TrainedModel,
    batches: Iterable[tuple[list[Path], Tensor]],
    *,
    top: int,
    early_exit: bool = True,
    precision: str = "fp32",
) -> Iterator[Prediction]:
    """Predicts image files.

    Args:
        trained: the model.
        batches: from ``read_batches``.
        top: number of classes in a prediction.
        early_exit: stop at the first confident exit if the checkpoint has thresholds.
        precision: ``fp32`` or ``bf16`` (autocast).

    Yields:
        A prediction for each image, in order.

    Raises:
        UserError: the checkpoint's thresholds do not fit its model.
    """
    exit_model = create_early_exit(trained) if early_exit and trained.exit_thresholds is not None else None
    names = trained.class_names
    for batch, images in batches:
        exits: list[int] | list[None] = [None] * len(batch)
        with torch.inference_mode(), autocast(trained.device, precision):
            if exit_model is not None:
                logits, exit_index = exit_model(images)
                exits = (exit_index + 1).tolist()
            else:
                output = trained.model(images)
                output = getattr(output, "logits", output)
                logits = output[-1] if isinstance(output, tuple) else output  # the last exit
        values, indices = logits.float().softmax(dim=1).topk(min(top, len(names)), dim=1)
        for row in zip(batch, indices.tolist(), values.tolist(), exits, strict=True):
            path, row_indices, probabilities, exit_number = row
            yield Prediction(path, [names[index] for index in row_indices], probabilities, exit_number)
