"""The ``predict`` verb: what a checkpoint sees on image files."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from vitfast.config import option
from vitfast.data import eval_transform, load_image
from vitfast.engine.device import autocast, select_device
from vitfast.engine.trained_model import WEIGHTS, TrainedModel, load_trained_model
from vitfast.errors import UserError


@dataclass
class PredictOptions:
    """Names what images show, with a checkpoint."""

    checkpoint: str = option(help="a run's folder (its newest checkpoint) or a checkpoint folder")
    images: str = option(help="image files and folders (searched recursively), separated by commas")
    top: int = option(3, "how many classes are shown for an image", minimum=1)
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
    """

    path: Path
    classes: list[str]
    probabilities: list[float]


def predict_images(options: PredictOptions) -> int:
    """Predicts files and prints a line for each to stdout, as soon as its batch is done.

    An image that cannot be read is reported by name on stderr, and the others are still predicted.

    Returns:
        The exit code: 0, or 1 if at least one image could not be read.

    Raises:
        UserError: if there is no valid checkpoint, or no image is found.
    """
    paths = find_images(options.images)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = select_device(options.device)
    trained = load_trained_model(options.checkpoint, weights=options.weights, device=device)
    show = _table_printer(paths) if options.output == "table" else _print_json
    if options.output == "table":
        print(f"{trained.describe()}\n")
    failed = 0

    def report(path: Path, reason: str) -> None:
        nonlocal failed
        failed += 1
        print(f"skipped: {reason if str(path) in reason else f'{path}: {reason}'}", file=sys.stderr, flush=True)

    for prediction in predict(trained, paths, device, options, report):
        show(prediction)
    if failed:
        print(f"{failed} of {len(paths)} images could not be read", file=sys.stderr, flush=True)
    return 1 if failed else 0


def find_images(images: str) -> list[Path]:
    """Returns the image files that are meant: a file as it is, a folder's images sorted, each once.

    Args:
        images: files and folders, separated by commas; a single path may contain commas itself.

    Raises:
        UserError: if an entry does not exist, or a folder holds no image.
    """
    entries = [images] if Path(images).exists() else [entry for entry in images.split(",") if entry]
    found: list[Path] = []
    for entry in entries:
        path = Path(entry)
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMG_EXTENSIONS)
            if not inside:
                raise UserError(f"images={entry}: the folder holds no image ({', '.join(IMG_EXTENSIONS)})")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"images={entry} does not exist; separate several paths by commas, without spaces")
    return list(dict.fromkeys(found))


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
        options: ``batch_size``, ``top`` and ``precision``.
        report: called with the file and the reason for each image that cannot be read.

    Yields:
        A prediction for each readable image, in order.
    """
    settings = trained.data
    in_chans = settings["in_chans"]
    names = ("img_size", "in_chans", "mean", "std", "interpolation", "crop_pct", "resize")
    transform = eval_transform(**{name: settings[name] for name in names})
    for first in range(0, len(paths), options.batch_size):
        batch: list[tuple[Path, Tensor]] = []
        for path in paths[first : first + options.batch_size]:
            try:
                batch.append((path, transform(load_image(path, in_chans))))
            except (UserError, OSError) as error:
                report(path, str(error))
        if not batch:
            continue
        images = torch.stack([image for _, image in batch]).to(device)
        with torch.inference_mode(), autocast(device, options.precision):
            answer = trained.model(images)
        logits = answer[-1] if isinstance(answer, tuple) else answer  # of several exits the last
        yield from _name(trained, [path for path, _ in batch], logits.float().softmax(dim=1), options.top)


def _name(trained: TrainedModel, paths: list[Path], probabilities: Tensor, top: int) -> Iterator[Prediction]:
    class_names = trained.class_names
    values, indices = probabilities.topk(min(top, len(class_names)), dim=1)
    for path, row_values, row_indices in zip(paths, values.tolist(), indices.tolist(), strict=True):
        yield Prediction(path, [class_names[index] for index in row_indices], row_values)


def _print_json(prediction: Prediction) -> None:
    line: dict[str, Any] = {
        "path": str(prediction.path),
        "classes": prediction.classes,
        "probabilities": [round(value, 6) for value in prediction.probabilities],
    }
    print(json.dumps(line), flush=True)


def _table_printer(paths: Sequence[Path]) -> Callable[[Prediction], None]:
    width = max(len(str(path)) for path in paths)

    def show(prediction: Prediction) -> None:
        pairs = zip(prediction.classes, prediction.probabilities, strict=True)
        cells = (f"{name} {probability:6.1%}" for name, probability in pairs)
        print(f"{str(prediction.path).ljust(width)}  " + "   ".join(cells), flush=True)

    return show
