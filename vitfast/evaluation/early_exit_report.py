"""What early exit makes of a checkpoint: one more pass over a split, beside that of all exits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from vitfast.errors import UserError
from vitfast.evaluation.early_exit_model import create_early_exit
from vitfast.evaluation.evaluator import Evaluation, evaluate
from vitfast.inference import exit_gmacs
from vitfast.runs.trained_model import TrainedModel
from vitfast.tasks import EarlyExitTask
from vitfast.text_table import percent


@dataclass(frozen=True)
class EarlyExitReport:
    """What was measured with the thresholds of a checkpoint.

    Attributes:
        thresholds: one an exit.
        evaluation: accuracy, loss and images/s.
        shares: of the images that left at each exit, 0..1.
        gmacs: mean of an image, 1e9 multiply-adds.
        all_gmacs: of an image that passes all exits.
    """

    thresholds: list[float]
    evaluation: Evaluation
    shares: list[float]
    gmacs: float
    all_gmacs: float

    def summary(self) -> list[tuple[str, str]]:
        """Names and values for people."""
        return [
            ("GMACs an image", f"{self.all_gmacs:.3g}"),
            ("early exit: top-1", percent(self.evaluation.top1)),
            *((f"early exit: leave at {number}", percent(share)) for number, share in enumerate(self.shares, start=1)),
            ("early exit: images/s", f"{self.evaluation.images_per_s:,.0f}"),
            ("early exit: GMACs an image", f"{self.gmacs:.3g}"),
        ]

    def figures(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "thresholds": self.thresholds,
            **self.evaluation.metrics(),
            "shares": self.shares,
            "gmacs": self.gmacs,
            "all_exits_gmacs": self.all_gmacs,
        }


def check_calibrated(trained: TrainedModel) -> list[float]:
    """Returns the thresholds that a checkpoint holds.

    Raises:
        UserError: if it holds none, or its model has no exits.
    """
    if trained.model.num_exits < 2:
        raise UserError(f"early_exit=true: {trained.manifest['model']['name']} has no exits to leave at")
    if trained.exit_thresholds is None:
        raise UserError(
            f"early_exit=true: {trained.checkpoint} holds no thresholds; find them with "
            f"python -m vitfast.exits checkpoint={trained.checkpoint} budget_gmacs=…"
        )
    return trained.exit_thresholds


def measure_early_exit(
    trained: TrainedModel, loader: DataLoader[Any], *, device: torch.device, precision: str
) -> EarlyExitReport:
    """Runs a checkpoint with early exit over all batches.

    Args:
        trained: with thresholds.
        loader: gives (images ``[B, C, H, W]``, labels ``[B]``).
        device: where the model is.
        precision: as in ``evaluate``.

    Raises:
        UserError: as ``check_calibrated``, or the thresholds do not fit the model.
    """
    thresholds = check_calibrated(trained)
    task = EarlyExitTask(create_early_exit(trained)).to(device)
    classes = len(trained.class_names)
    evaluation = evaluate(task, loader, num_classes=classes, device=device, precision=precision)
    assert evaluation is not None  # nothing can stop it
    shares = (task.left.double() / task.left.sum()).tolist()
    costs = exit_gmacs(trained.model)
    mean = sum(share * cost for share, cost in zip(shares, costs, strict=True))
    return EarlyExitReport(thresholds, evaluation, shares, mean, costs[-1])
