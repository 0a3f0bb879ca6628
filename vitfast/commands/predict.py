"""``vitfast predict``: classifies images.

Paths are image files or folders, searched recursively. A checkpoint that was trained on the packaged digits takes any
grey or colour image: it is converted to grey and resized to 8 x 8. As in MNIST the stroke must be bright on a dark
background; invert a photograph of ink on paper first.

With a model with exits whose checkpoint has thresholds, each image stops at the first exit that is confident enough,
and the output names it; ``early_exit=false`` runs all exits.

With ``target=FOLDER`` an accelerated model computes the predictions of a collection, which are written in shards, as
embeddings are by ``vitfast embed``.

Exit code: 0 if every image was predicted; 1 if some could not be read (each is named on stderr, the others are
still predicted); 2 after a user error.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vitfast.commands.command_options import PredictOptions
from vitfast.commands.embed import write_collection
from vitfast.data.collection import list_images
from vitfast.evaluation.image_files import read_batches, report_skipped
from vitfast.evaluation.predict import Prediction, predict
from vitfast.evaluation.row_functions import Classifier
from vitfast.runs.trained_model import TrainedModel


def run(options: PredictOptions) -> int:
    """Runs the command, and prints a line for each image, batch by batch; returns the exit code."""
    if options.target is not None:
        return write_collection(options, options.target, build_classifier)
    images = list(list_images(options.images))
    trained = options.load()
    width = max(len(image.path) for image in images)
    if options.output == "table":
        print(f"{trained.describe()}\n")
    skipped: list[Path] = []
    batches = read_batches(trained, images, options.batch_size, skipped)
    for prediction in predict(
        trained, batches, top=options.top, early_exit=options.early_exit, precision=options.precision or "fp32"
    ):
        line = _table_line(prediction, width) if options.output == "table" else _json_line(prediction)
        print(line, flush=True)
    return report_skipped(skipped, len(images))


def build_classifier(options: PredictOptions) -> tuple[TrainedModel, Classifier]:
    """Loads the model, for results in shards."""
    trained = options.load()
    settings = {name: getattr(options, name) for name in ("top", "early_exit", "precision", "shrink_jpeg")}
    return trained, Classifier(trained, **settings)


def _json_line(prediction: Prediction) -> str:
    line: dict[str, Any] = {
        "path": str(prediction.path),
        "classes": prediction.classes,
        "probabilities": [round(value, 6) for value in prediction.probabilities],
    }
    if prediction.exit_number is not None:
        line["exit"] = prediction.exit_number
    return json.dumps(line)


def _table_line(prediction: Prediction, width: int) -> str:
    pairs = zip(prediction.classes, prediction.probabilities, strict=True)
    cells = (f"{name} {probability:6.1%}" for name, probability in pairs)
    left = "" if prediction.exit_number is None else f"exit {prediction.exit_number}  "
    return f"{str(prediction.path).ljust(width)}  {left}" + "   ".join(cells)
