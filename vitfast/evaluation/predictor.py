"""The ``predict`` verb: what a checkpoint sees on image files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitfast.config import option
from vitfast.device import autocast, select_device
from vitfast.evaluation.early_exit_model import create_early_exit
from vitfast.evaluation.image_files import SkippedImages, find_images, read_batches
from vitfast.runs.trained_model import WEIGHTS, TrainedModel, load_trained_model


@dataclass
class PredictOptions:
    """Names what images show, with a checkpoint."""

    checkpoint: str = option(help="a run's folder (its newest checkpoint) or a checkpoint folder")
    images: str = option(help="image files and folders (searched recursively), separated by commas")
    top: int = option(3, "how many classes are shown for an image", minimum=1)
    early_exit: bool = option(
        True,
        "where the checkpoint has thresholds (python -m vitfast.exits), stop at the first exit that is sure enough",
    )
    output: str = option("table", "table, or one JSON object a line", choices=["table", "jsonl"])
    weights: str = option("auto", "auto: the averaged weights (EMA) if there are any", choices=list(WEIGHTS))
    batch_size: int = option(32, "images in a batch", minimum=1)
    precision: str = option("fp32", "arithmetic; bf16: autocast", choices=["fp32", "bf16"])
    device: str = option("auto", "auto: a GPU if there is one", choices=["auto", "cpu", "cuda"])
    threads: int | None = option(None, "CPU threads; null: torch's choice", minimum=1)


@dataclass(frozen=True)
class Prediction:
    """What the model says about an image.

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


def predict_images(options: PredictOptions) -> int:
    """Predicts files and prints a line for each to stdout, as soon as its batch is done.

    An image that cannot be read is reported by name on stderr, and the others are still predicted.

    Returns:
        The exit code: 0, or 1 if at least one image could not be read.

    Raises:
        UserError: if there is no valid checkpoint, its thresholds are another model's, or no image is found.
    """
    paths = find_images(options.images)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = select_device(options.device)
    trained = load_trained_model(options.checkpoint, weights=options.weights, device=device)
    show = _table_printer(paths) if options.output == "table" else _print_json
    if options.output == "table":
        print(f"{trained.describe()}\n")
    skipped = SkippedImages()
    for prediction in predict(trained, paths, device, options, skipped):
        show(prediction)
    return skipped.conclude(len(paths))


def predict(
    trained: TrainedModel,
    paths: Sequence[Path],
    device: torch.device,
    options: PredictOptions,
    report: Callable[[Path, str], None],
) -> Iterator[Prediction]:
    """Predicts files in batches.

    Args:
        trained: the model.
        paths: image files.
        device: where the model lies.
        options: ``batch_size``, ``top``, ``early_exit`` and ``precision``.
        report: called with the file and the reason for each image that cannot be read.

    Yields:
        A prediction for each readable image, in order.

    Raises:
        UserError: the checkpoint's thresholds are another model's.
    """
    early_exit = create_early_exit(trained) if options.early_exit and trained.exit_thresholds is not None else None
    for batch, images in read_batches(trained, paths, options.batch_size, report):
        exits: list[int] | list[None] = [None] * len(batch)
        with torch.inference_mode(), autocast(device, options.precision):
            if early_exit is not None:
                logits, exit_index = early_exit(images.to(device))
                exits = (exit_index + 1).tolist()
            else:
                answer = trained.model(images.to(device))
                logits = answer[-1] if isinstance(answer, tuple) else answer  # of several exits the last
        yield from _name(trained, batch, logits.float().softmax(dim=1), exits, options.top)


def _name(
    trained: TrainedModel, paths: list[Path], probabilities: Tensor, exits: Sequence[int | None], top: int
) -> Iterator[Prediction]:
    class_names = trained.class_names
    values, indices = probabilities.topk(min(top, len(class_names)), dim=1)
    rows = zip(paths, values.tolist(), indices.tolist(), exits, strict=True)
    for path, row_values, row_indices, exit_number in rows:
        yield Prediction(path, [class_names[index] for index in row_indices], row_values, exit_number)


def _print_json(prediction: Prediction) -> None:
    line: dict[str, Any] = {
        "path": str(prediction.path),
        "classes": prediction.classes,
        "probabilities": [round(value, 6) for value in prediction.probabilities],
    }
    if prediction.exit_number is not None:
        line["exit"] = prediction.exit_number
    print(json.dumps(line), flush=True)


def _table_printer(paths: Sequence[Path]) -> Callable[[Prediction], None]:
    width = max(len(str(path)) for path in paths)

    def show(prediction: Prediction) -> None:
        pairs = zip(prediction.classes, prediction.probabilities, strict=True)
        cells = (f"{name} {probability:6.1%}" for name, probability in pairs)
        left = "" if prediction.exit_number is None else f"exit {prediction.exit_number}  "
        print(f"{str(prediction.path).ljust(width)}  {left}" + "   ".join(cells), flush=True)

    return show
