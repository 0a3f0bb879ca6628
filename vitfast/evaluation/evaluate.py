"""Evaluation of a model: one pass over a split, per-class metrics, and a model with early exit or accelerated."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassCalibrationError, MulticlassConfusionMatrix

import vitfast
from vitfast.device import autocast, synchronize
from vitfast.errors import UserError
from vitfast.evaluation.meter import ClassificationMeter
from vitfast.inference import EarlyExit, exit_gmacs
from vitfast.runs.trained_model import TrainedModel
from vitfast.tasks import EarlyExitTask, Task, create_plain_task
from vitfast.text_table import percent

_CALIBRATION_BINS = 15
CLASS_METRICS = ("precision", "recall", "f1")


@dataclass(frozen=True)
class Evaluation:
    """Result of ``evaluate``.

    Attributes:
        images: number of images; every image of the split counts exactly once.
        loss: mean over the images.
        top1: share of images whose largest logit is the label's, 0..1.
        top5: share whose label is among the five largest (all, for fewer than five classes).
        images_per_s: including reading and transfer.
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
        """Returns the metrics that a line of ``metrics.jsonl`` contains."""
        metrics = {"loss": self.loss, "top1": self.top1, "top5": self.top5, "images_per_s": round(self.images_per_s, 1)}
        return metrics if self.exits is None else {**metrics, "exits": self.exits}


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
    """Runs a task over all batches in evaluation mode and restores its mode afterwards.

    In distributed training each rank passes its part of every batch (which may be empty), and all ranks receive the
    metrics of all images; ``detailed`` requires a single process.

    Args:
        task: ``forward(images, labels) -> {"loss", "output"}``, on ``device``.
        loader: yields (images [B, C, H, W], labels [B]).
        num_classes: K.
        device: of the task.
        num_exits: of the model.
        precision: ``fp32``, or ``bf16`` or ``fp16`` (autocast).
        detailed: also compute the confusion matrix and the calibration error.
        should_stop: called before each batch; True aborts the pass.

    Returns:
        The metrics, or None if the pass was aborted.
    """
    meter = ClassificationMeter(num_classes, device, num_exits)
    if detailed:
        confusion = MulticlassConfusionMatrix(num_classes, validate_args=False).to(device)
        calibration = MulticlassCalibrationError(num_classes, n_bins=_CALIBRATION_BINS, validate_args=False).to(device)
    was_training = task.training
    task.eval()
    start = time.perf_counter()
    try:
        with torch.inference_mode(), autocast(device, precision):
            for images, labels in loader:
                if should_stop():
                    return None
                if len(labels) == 0:
                    continue  # a rank without any of the last images
                images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
                result = task(images, labels)
                meter.update(result["loss"], result["output"], labels, result.get("exits"))
                if detailed:
                    confusion.update(result["output"], labels)
                    # probabilities: given logits, torchmetrics would have to guess
                    calibration.update(result["output"].softmax(dim=1), labels)
        synchronize(device)
    finally:
        task.train(was_training)
    seconds = time.perf_counter() - start
    metrics = meter.compute()
    if detailed:
        metrics |= {"confusion": confusion.compute().cpu(), "calibration_error": float(calibration.compute())}
    return Evaluation(images_per_s=metrics["images"] / seconds, **metrics)


def evaluate_model(
    trained: TrainedModel, loader: DataLoader[Any], *, precision: str = "fp32", task: Task | None = None
) -> Evaluation:
    """Evaluates a checkpoint's model in detail, or another ``task`` with the same classes and exits."""
    evaluation = evaluate(
        create_plain_task(trained.model) if task is None else task,
        loader,
        num_classes=len(trained.class_names),
        device=trained.device,
        num_exits=trained.model.num_exits,
        precision=precision,
        detailed=True,
    )
    assert evaluation is not None  # should_stop is never True
    return evaluation


def per_class(evaluation: Evaluation, class_names: list[str]) -> list[dict[str, Any]]:
    """Returns the number of images, precision and recall of each class; None where undefined.

    Args:
        evaluation: detailed.
        class_names: in the order of the logits.
    """
    assert evaluation.confusion is not None
    correct = evaluation.confusion.diagonal().tolist()
    labelled, predicted = (evaluation.confusion.sum(dim=axis).tolist() for axis in (1, 0))
    return [
        {"class": name, "n": n, "precision": right / p if p else None, "recall": right / n if n else None}
        for name, right, n, p in zip(class_names, correct, labelled, predicted, strict=True)
    ]


def classification_report(evaluation: Evaluation, class_names: list[str]) -> list[dict[str, Any]]:
    """Returns precision, recall and F1 of each class, then their plain mean and their mean weighted by images.

    Undefined values (no image of the class, or none predicted as it) are 0, as in scikit-learn's classification report.
    """
    rows = []
    for row in per_class(evaluation, class_names):
        precision, recall = row["precision"] or 0.0, row["recall"] or 0.0
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        rows.append({**row, "precision": precision, "recall": recall, "f1": f1})
    images = sum(row["n"] for row in rows)
    macro = {name: sum(row[name] for row in rows) / max(len(rows), 1) for name in CLASS_METRICS}
    weighted = {name: sum(row[name] * row["n"] for row in rows) / max(images, 1) for name in CLASS_METRICS}
    return [
        *rows,
        {"class": "mean of the classes", "n": images, **macro},
        {"class": "mean of the images", "n": images, **weighted},
    ]


def confusions(evaluation: Evaluation, class_names: list[str]) -> list[tuple[str, str, int]]:
    """Returns the errors of a detailed evaluation as (label, prediction, count), the most frequent first."""
    assert evaluation.confusion is not None
    wrong = evaluation.confusion.clone().fill_diagonal_(0)
    pairs = [(class_names[i], class_names[j], int(wrong[i, j])) for i, j in wrong.nonzero().tolist()]
    return sorted(pairs, key=lambda pair: -pair[2])


@dataclass(frozen=True)
class OtherEvaluation:
    """A checkpoint's model run in another way: accelerated, or with early exit.

    Attributes:
        evaluation: accuracy, loss and images/s.
        summary: names and values for the printed table.
        metrics: values for JSON.
    """

    evaluation: Evaluation
    summary: list[tuple[str, str]]
    metrics: dict[str, Any]


def evaluate_accelerated(
    trained: TrainedModel, loader: DataLoader[Any], *, precision: str, merge_tokens: int = 0
) -> OtherEvaluation:
    """Accelerates a checkpoint's model for this CPU and evaluates both models, the source without autocast.

    Args:
        trained: on the CPU.
        loader: yields all images in the same order on every iteration.
        precision: of ``vitfast.accelerate``.
        merge_tokens: of ``vitfast.accelerate``.

    Raises:
        UserError: the model is quantized to another precision, or its tokens cannot be merged.
    """
    source_task = create_plain_task(trained.model)
    fast = vitfast.accelerate(trained.model, precision, merge_tokens=merge_tokens)
    evaluations, classes = [], []
    for task in (type(source_task)(fast), source_task):
        outputs: list[Tensor] = []
        task.register_forward_hook(lambda _, __, result, outputs=outputs: outputs.append(result["output"].argmax(1)))
        # eval() because evaluate restores the mode, and an accelerated model has no training mode
        evaluations.append(evaluate_model(trained, loader, task=task.eval()))
        classes.append(torch.cat(outputs))
    evaluation, source = evaluations
    agreement = float((classes[0] == classes[1]).double().mean())
    summary = [
        ("not accelerated: top-1", percent(source.top1)),
        ("not accelerated: images/s", f"{source.images_per_s:,.0f}"),
        ("same class as not accelerated", percent(agreement)),
    ]
    settings = {"precision": precision, "merge_tokens": merge_tokens, "kernels": fast.report().kernels}
    compared = {**settings, "agreement": agreement}
    return OtherEvaluation(evaluation, summary, {"accelerate": {**compared, "source": source.metrics()}})


def create_early_exit(trained: TrainedModel) -> EarlyExit:
    """Wraps the model of a checkpoint with thresholds in ``EarlyExit``.

    Raises:
        UserError: the model has no exits, the checkpoint has no thresholds, or they do not fit the model.
    """
    calibrate = f"python -m vitfast.exits checkpoint={trained.checkpoint} budget_gmacs=…"
    if trained.model.num_exits < 2:
        raise UserError(f"early_exit=true: {trained.name} has no exits to leave at")
    if trained.exit_thresholds is None:
        raise UserError(f"early_exit=true: {trained.checkpoint} holds no thresholds; find them with {calibrate}")
    try:
        return EarlyExit(trained.model, trained.exit_thresholds)
    except UserError as error:
        raise UserError(
            f"{trained.checkpoint}/manifest.json: exit_thresholds={trained.exit_thresholds} are not those of its model "
            f"{trained.name}: {error}; {calibrate} stores new ones"
        ) from error


def evaluate_early_exit(
    model: EarlyExit, trained: TrainedModel, loader: DataLoader[Any], *, precision: str
) -> OtherEvaluation:
    """Evaluates ``create_early_exit(trained)``; the other arguments are those of ``evaluate_model``."""
    task = EarlyExitTask(model).to(trained.device)
    num_classes = len(trained.class_names)
    evaluation = evaluate(task, loader, num_classes=num_classes, device=trained.device, precision=precision)
    assert evaluation is not None
    shares = (task.left.double() / task.left.sum()).tolist()
    costs = exit_gmacs(trained.model)
    mean = sum(share * cost for share, cost in zip(shares, costs, strict=True))
    summary = [
        ("GMACs an image", f"{costs[-1]:.3g}"),
        ("early exit: top-1", percent(evaluation.top1)),
        *((f"early exit: leave at {number}", percent(share)) for number, share in enumerate(shares, start=1)),
        ("early exit: images/s", f"{evaluation.images_per_s:,.0f}"),
        ("early exit: GMACs an image", f"{mean:.3g}"),
    ]
    measured = {**evaluation.metrics(), "shares": shares, "gmacs": mean, "all_exits_gmacs": costs[-1]}
    return OtherEvaluation(evaluation, summary, {"early_exit": {"thresholds": list(model.thresholds), **measured}})
