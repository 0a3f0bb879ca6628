"""What ``vitfast.accelerate`` makes of a checkpoint: a pass over a split by it, and one by the model itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import vitfast
from vitfast.evaluation.evaluator import Evaluation, evaluate
from vitfast.runs.trained_model import TrainedModel
from vitfast.tasks import create_plain_task
from vitfast.text_table import percent


@dataclass(frozen=True)
class AcceleratedReport:
    """An accelerated model beside its source, on the same images.

    Attributes:
        precision: of the accelerated model.
        kernels: the instruction set that it uses.
        evaluation: of the accelerated model.
        source: the same of the checkpoint's own model, without autocast.
        agreement: share of the images to which both give the same class, 0..1.
    """

    precision: str
    kernels: str
    evaluation: Evaluation
    source: Evaluation
    agreement: float

    def summary(self) -> list[tuple[str, str]]:
        """Names and values for people."""
        return [
            ("not accelerated: top-1", percent(self.source.top1)),
            ("not accelerated: images/s", f"{self.source.images_per_s:,.0f}"),
            ("same class as not accelerated", percent(self.agreement)),
        ]

    def figures(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "precision": self.precision,
            "kernels": self.kernels,
            "agreement": self.agreement,
            "source": self.source.metrics(),
        }


def measure_accelerated(trained: TrainedModel, loader: DataLoader[Any], *, precision: str) -> AcceleratedReport:
    """Accelerates a checkpoint's model for this CPU, and measures both.

    Args:
        trained: on the CPU.
        loader: gives all images, in the same order whenever it is asked.
        precision: of ``vitfast.accelerate``.

    Raises:
        UserError: the model is quantized to another precision.
    """
    task = create_plain_task(trained.model)
    fast = vitfast.accelerate(trained.model, precision)
    evaluations, classes = [], []
    for one in (type(task)(fast), task):
        # eval() here: evaluate puts back the mode that it found, and an accelerated model has no training mode
        watched = _Classes(one).eval()
        evaluation = evaluate(
            watched,
            loader,
            num_classes=len(trained.class_names),
            num_exits=trained.model.num_exits,
            device=torch.device("cpu"),
            detailed=True,
        )
        assert evaluation is not None  # nothing can stop it
        evaluations.append(evaluation)
        classes.append(torch.cat(watched.classes))
    agreement = float((classes[0] == classes[1]).double().mean())
    return AcceleratedReport(precision, fast.report().kernels, evaluations[0], evaluations[1], agreement)


class _Classes(nn.Module):
    """Runs a task, and remembers the class that it gives to each image."""

    def __init__(self, task: nn.Module) -> None:
        super().__init__()
        self.task = task
        self.classes: list[Tensor] = []

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        result: dict[str, Tensor] = self.task(images, labels)
        self.classes.append(result["output"].argmax(dim=1))
        return result
