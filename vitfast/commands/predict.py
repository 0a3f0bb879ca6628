"""``vitfast predict``: classifies images.

Paths are image files or folders, searched recursively. A checkpoint that was trained on the packaged digits takes any
grey or colour image: it is converted to grey and resized to 8 x 8. As in MNIST the stroke must be bright on a dark
background; invert a photograph of ink on paper first.

With a model with exits whose checkpoint has thresholds, each image stops at the first exit that is confident enough,
and the output names it; ``early_exit=false`` runs all exits.

Exit code: 0 if every image was predicted; 1 if some could not be read (each is named on stderr, the others are
still predicted); 2 after a user error.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vitfast.config import load_options, option
from vitfast.device import select_device
from vitfast.evaluation.image_files import SkippedImages, find_images
from vitfast.evaluation.predict import Prediction, predict
from vitfast.runs.trained_model import WEIGHTS, load_trained_model


@dataclass
class PredictOptions:
    """Classifies images with a checkpoint."""

    checkpoint: str = option(help="folder of a run (its newest checkpoint) or of a checkpoint")
    images: str = option(help="image files and folders (searched recursively), separated by commas")
    top: int = option(3, "number of classes per image", minimum=1)
    early_exit: bool = option(
        True,
        "if the checkpoint has thresholds (python -m vitfast.exits), stop at the first confident exit",
    )
    output: str = option("table", "table, or one JSON object per line", choices=["table", "jsonl"])
    weights: str = option("auto", "auto: averaged weights (EMA) if available", choices=list(WEIGHTS))
    batch_size: int = option(32, "images in a batch", minimum=1)
    precision: str = option("fp32", "bf16: autocast", choices=["fp32", "bf16"])
    device: str = option("auto", "auto: the GPU if there is one", choices=["auto", "cpu", "cuda"])
    threads: int | None = option(None, "CPU threads; null: torch's choice", minimum=1)


def run(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    return predict_images(load_options(PredictOptions, list(arguments), "python -m vitfast.predict"))


def predict_images(options: PredictOptions) -> int:
    """Classifies files and prints a line for each on stdout, batch by batch.

    An unreadable image is reported on stderr, and the others are still classified.

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
    for prediction in predict(
        trained,
        paths,
        device,
        skipped,
        batch_size=options.batch_size,
        top=options.top,
        early_exit=options.early_exit,
        precision=options.precision,
    ):
        show(prediction)
    return skipped.conclude(len(paths))


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
