"""``vitfast evaluate``: measures a checkpoint on a split of its data.

Prints top-1, top-5, calibration error, images/s and a table by class; ``output=json`` prints the same as JSON.
With ``exits=sweep``, for a model with exits, it prints and draws accuracy against images/s and cost instead.
``accelerate=int8`` measures the model as ``vitfast.accelerate`` runs it on this CPU, and how often both agree.
``probe=knn`` and ``probe=linear`` evaluate its frozen features instead, by a classifier of the train split's.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import cast

from vitfast.commands.command_options import EvaluateOptions
from vitfast.commands.evaluate_probe import probe_features
from vitfast.commands.evaluate_sweep import sweep_exits, sweep_json, sweep_table
from vitfast.data import ImageDataset
from vitfast.evaluation.checkpoint_data import loader_of_split
from vitfast.evaluation.evaluate import (
    Evaluation,
    OtherEvaluation,
    confusions,
    create_early_exit,
    evaluate_accelerated,
    evaluate_early_exit,
    evaluate_model,
    per_class,
)
from vitfast.runs.trained_model import TrainedModel
from vitfast.text_table import percent, text_table

_CONFUSIONS_SHOWN = 5


def run(options: EvaluateOptions) -> int:
    """Runs the command; returns the exit code."""
    trained = (options if options.accelerate is None else replace(options, device="cpu")).load(
        headless=options.probe is not None
    )
    if options.exits == "sweep":
        result = sweep_exits(trained, options.data, options.split, options.precision, options.sweep)
        print(sweep_json(result) if options.output == "json" else sweep_table(result))
        return 0
    if options.probe is not None:
        print(probe_features(trained, options))
        return 0
    early_exit = create_early_exit(trained) if options.early_exit else None  # before the images are opened
    loader = loader_of_split(trained, options.data, options.split)
    other: OtherEvaluation | None = None
    if options.accelerate is not None:
        other = evaluate_accelerated(trained, loader, precision=options.accelerate, merge_tokens=options.merge_tokens)
        evaluation = other.evaluation
    else:
        evaluation = evaluate_model(trained, loader, precision=options.precision)
    if early_exit is not None:
        other = evaluate_early_exit(early_exit, trained, loader, precision=options.precision)
    images = len(cast(ImageDataset, loader.dataset))
    if options.output == "table":
        print(_format_table(trained, options, evaluation, images, other))
        return 0
    report = {
        "checkpoint": str(trained.checkpoint),
        "model": trained.name,
        "weights": trained.weights,
        "split": options.split,
        "precision": options.accelerate or options.precision,
        "images": evaluation.images,
        "unreadable_images": images - evaluation.images,
        **evaluation.metrics(),
        **(other.metrics if other is not None else {}),
        "calibration_error": evaluation.calibration_error,
        "per_class": per_class(evaluation, trained.class_names),
    }
    print(json.dumps(report, indent=2))
    return 0


def _format_table(
    trained: TrainedModel,
    options: EvaluateOptions,
    evaluation: Evaluation,
    images: int,
    other: OtherEvaluation | None,
) -> str:
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
        *(other.summary if other is not None else ()),
    ]
    width = max(len(name) for name, _ in summary)
    lines = [f"model    {trained.describe()}"]
    if options.accelerate is not None and other is not None:
        kernels = other.metrics["accelerate"]["kernels"]
        merging = f", merge_tokens={options.merge_tokens}" if options.merge_tokens else ""
        lines.append(f"runs     accelerated, in {options.accelerate}, by {kernels}{merging}")
    lines += [
        f"split    {options.split}, {measured}",
        "",
        *(f"{name.ljust(width)}  {value:>9}" for name, value in summary),
        "",
        text_table(("class", "n", "precision", "recall"), rows),
    ]
    worst = confusions(evaluation, trained.class_names)[:_CONFUSIONS_SHOWN]
    if worst:
        lines += ["", "most frequent mistakes:"]
        lines += [f"  {count:,} x {label} predicted as {wrong}" for label, wrong, count in worst]
    return "\n".join(lines)
