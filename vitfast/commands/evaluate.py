"""``vitfast evaluate``: measures a checkpoint on a split of its data.

Prints top-1, top-5, calibration error, images/s and a table by class; ``output=json`` prints the same as JSON.
With ``exits=sweep``, for a model with exits, it prints and draws accuracy against images/s and cost instead.
``accelerate=int8`` measures the model as ``vitfast.accelerate`` runs it on this CPU, and how often both agree.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch

from vitfast.commands.evaluate_sweep import SweepOptions, sweep_exits, sweep_json, sweep_table
from vitfast.config import load_options, option
from vitfast.data import ImageDataset
from vitfast.device import select_device
from vitfast.errors import UserError
from vitfast.evaluation.checkpoint_data import EvaluateDataOptions, loader_of_split
from vitfast.evaluation.evaluate import (
    AcceleratedEvaluation,
    EarlyExitEvaluation,
    Evaluation,
    check_calibrated,
    confusions,
    evaluate_accelerated,
    evaluate_early_exit,
    evaluate_model,
    per_class,
)
from vitfast.runs.trained_model import WEIGHTS, TrainedModel, load_trained_model
from vitfast.text_table import percent, text_table

_CONFUSIONS_SHOWN = 5


@dataclass
class EvaluateOptions:
    """Evaluates a checkpoint on a split of its training data, or on other data."""

    checkpoint: str = option(help="folder of a run (its newest checkpoint) or of a checkpoint")
    split: str = option("test", "the images", choices=["train", "val", "test"])
    weights: str = option("auto", "auto: averaged weights (EMA) if available", choices=list(WEIGHTS))
    output: str = option("table", "format of the results", choices=["table", "json"])
    exits: str = option(
        "each",
        "models with exits; each: accuracy of each exit; sweep: accuracy, images/s and cost of 59 choices of "
        "thresholds, and plots; see sweep.…",
        choices=["each", "sweep"],
    )
    quantized_ckpt: bool | None = option(
        None, "for compatibility with myrtle-vision; ignored, the checkpoint records it"
    )
    early_exit: bool = option(False, "also evaluate early exit, with the thresholds of python -m vitfast.exits")
    accelerate: str | None = option(
        None,
        "also evaluate the model accelerated by vitfast.accelerate for this CPU, in this precision; null: only the "
        "original model",
        choices=["fp32", "bf16", "fp16_32", "int8"],
    )
    precision: str = option("fp32", "bf16: autocast", choices=["fp32", "bf16"])
    device: str = option("auto", "auto: the GPU if there is one", choices=["auto", "cpu", "cuda"])
    threads: int | None = option(None, "CPU threads; null: torch's choice", minimum=1)
    data: EvaluateDataOptions = field(default_factory=EvaluateDataOptions)
    sweep: SweepOptions = field(default_factory=SweepOptions)

    def check(self, prefix: str = "") -> None:
        """Raises UserError if ``accelerate`` is combined with an option that it excludes."""
        others = {
            f"precision={self.precision}": self.precision != "fp32",
            f"device={self.device}": self.device == "cuda",
            f"exits={self.exits}": self.exits == "sweep",
            "early_exit=true": self.early_exit,
        }
        wrong = [name for name, given in others.items() if given]
        if self.accelerate is not None and wrong:
            raise UserError(
                f"accelerate={self.accelerate} evaluates whole models on the CPU, in that precision; "
                f"leave out {' and '.join(wrong)}, or accelerate"
            )


def run(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    options = load_options(EvaluateOptions, list(arguments), "python -m vitfast.evaluate")
    print(evaluate_checkpoint(options))
    return 0


def evaluate_checkpoint(options: EvaluateOptions) -> str:
    """Evaluates a checkpoint and returns the output, a table or JSON.

    Raises:
        UserError: if there is no valid checkpoint, no such split, the images do not fit the model, or thresholds for
            early exit are missing.
    """
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = select_device(options.device if options.accelerate is None else "cpu")
    trained = load_trained_model(options.checkpoint, weights=options.weights, device=device)
    if options.exits == "sweep":
        report = sweep_exits(trained, options.data, options.split, options.precision, options.sweep)
        return sweep_json(report) if options.output == "json" else sweep_table(report)
    if options.early_exit:
        check_calibrated(trained)
    loader = loader_of_split(trained, options.data, options.split)
    images = len(cast(ImageDataset, loader.dataset))
    format_results = as_json if options.output == "json" else as_table
    if options.accelerate is not None:
        accelerated = evaluate_accelerated(trained, loader, precision=options.accelerate)
        return format_results(trained, options, accelerated.evaluation, images, accelerated=accelerated)
    evaluation = evaluate_model(
        trained.model, loader, num_classes=len(trained.class_names), device=device, precision=options.precision
    )
    early = None
    if options.early_exit:
        early = evaluate_early_exit(trained, loader, device=device, precision=options.precision)
    return format_results(trained, options, evaluation, images, early)


def as_table(
    trained: TrainedModel,
    options: EvaluateOptions,
    evaluation: Evaluation,
    images: int,
    early: EarlyExitEvaluation | None = None,
    accelerated: AcceleratedEvaluation | None = None,
) -> str:
    """Formats the results as a table."""
    bad = images - evaluation.images
    measured = f"{evaluation.images:,} images" + (f" of {images:,}: {bad:,} cannot be read" if bad else "")
    classes = per_class(evaluation, trained.class_names)
    rows = [(row["class"], f"{row['n']:,}", percent(row["precision"]), percent(row["recall"])) for row in classes]
    summary = [
        ("top-1", percent(evaluation.top1)),
        ("top-5", percent(evaluation.top5)),
        *((f"top-1 of exit {number}", percent(top1)) for number, top1 in enumerate(evaluation.exits or [], start=1)),
        ("loss", f"{evaluation.loss:.4f}"),
        ("calibration error (ECE)", percent(evaluation.calibration_error)),
        ("images/s", f"{evaluation.images_per_s:,.0f}"),
        *(early.summary() if early is not None else ()),
        *(accelerated.summary() if accelerated is not None else ()),
    ]
    width = max(len(name) for name, _ in summary)
    how = [] if accelerated is None else [f"runs     accelerated, in {accelerated.precision}, by {accelerated.kernels}"]
    lines = [
        f"model    {trained.describe()}",
        *how,
        f"split    {options.split}, {measured}",
        "",
        *(f"{name.ljust(width)}  {value:>9}" for name, value in summary),
        "",
        text_table(("class", "n", "precision", "recall"), rows),
    ]
    worst = confusions(evaluation, trained.class_names)[:_CONFUSIONS_SHOWN]
    if worst:
        lines += [
            "",
            "most frequent mistakes:",
            *(f"  {count:,} x {label} predicted as {wrong}" for label, wrong, count in worst),
        ]
    return "\n".join(lines)


def as_json(
    trained: TrainedModel,
    options: EvaluateOptions,
    evaluation: Evaluation,
    images: int,
    early: EarlyExitEvaluation | None = None,
    accelerated: AcceleratedEvaluation | None = None,
) -> str:
    """Formats the results as a JSON object, with null for undefined values; the arguments are those of ``as_table``."""
    classes = per_class(evaluation, trained.class_names)
    return json.dumps(
        {
            "checkpoint": str(trained.checkpoint),
            "model": trained.manifest["model"]["name"],
            "weights": trained.weights,
            "split": options.split,
            "precision": options.accelerate or options.precision,
            "images": evaluation.images,
            "unreadable_images": images - evaluation.images,
            **evaluation.metrics(),
            **({"early_exit": early.metrics()} if early is not None else {}),
            **({"accelerate": accelerated.metrics()} if accelerated is not None else {}),
            "calibration_error": evaluation.calibration_error,
            "per_class": [{key: _json_number(value) for key, value in row.items()} for row in classes],
        },
        indent=2,
    )


def _json_number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
