"""``vitfast evaluate probe=knn|linear``: accuracy of classifiers on the frozen features of a checkpoint."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vitfast.commands.command_options import EvaluateOptions
from vitfast.data import ImageDataset, available_splits
from vitfast.errors import UserError, explain_os_error
from vitfast.evaluation.checkpoint_data import data_of_checkpoint, dataset_of_split
from vitfast.evaluation.feature_files import Features, features_of_split
from vitfast.evaluation.features import LAST_CLS, feature_layers
from vitfast.evaluation.image_files import restore_pixels
from vitfast.evaluation.knn import KNN_PROTOCOLS, knn_accuracies, nearest_neighbours
from vitfast.evaluation.linear_probe import LINEAR_PROTOCOLS, linear_accuracy
from vitfast.evaluation.plots import draw_neighbours
from vitfast.runs.trained_model import TrainedModel
from vitfast.text_table import percent, text_table

FIGURE, FOLDER = "neighbours.png", "features"
_QUERIES, _NEIGHBOURS = 8, 8  # rows and columns of the figure


@dataclass(frozen=True)
class _Split:
    """A split and its features by layer."""

    dataset: ImageDataset
    features: dict[str, Features]


def probe_features(trained: TrainedModel, options: EvaluateOptions) -> str:
    """Fits classifiers to the features of the train split and evaluates them on ``options.split``.

    Returns:
        What is printed: a table, or with ``output=json`` an object.

    Raises:
        UserError: there is no such split, no train split or a single class, the model does not have a layer, or files
            cannot be written.
    """
    layers = _choose_layers(trained, options)
    folder = trained.checkpoint.parent if options.probing.folder is None else Path(options.probing.folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"probing.folder={options.probing.folder}: there is no such folder; create it first")
    train, test = _open_splits(trained, options, layers, folder / FOLDER)
    pictures: list[str] = []
    if options.probe == "knn":
        accuracies: dict[str, Any] = _knn(train, test, trained)
        rows = [(name, percent(accuracy)) for name, accuracy in accuracies.items()]
        table = text_table(("neighbours", "top-1"), rows)
        with explain_os_error(f"{folder / FIGURE} cannot be written", "; give another probing.folder"):
            title = f"{trained.name}: images of {options.split}, and the nearest of train"
            _draw(train, test, folder / FIGURE, title)
        pictures.append(str(folder / FIGURE))
    else:
        accuracies = _linear(train, test, trained, layers)
        cells = [(name, *(percent(accuracy) for accuracy in row.values())) for name, row in accuracies.items()]
        table = text_table(("protocol", *layers), cells)
    train_images, images = (len(split.features[layers[0]].targets) for split in (train, test))
    if options.output == "json":
        report = {
            "checkpoint": str(trained.checkpoint),
            "model": trained.name,
            "weights": trained.weights,
            "split": options.split,
            "precision": options.precision,
            "train_images": train_images,
            "images": images,
            "unreadable_images": len(test.dataset) - images,
            str(options.probe): accuracies,
            "features": str(folder / FOLDER),
            "pictures": pictures,
        }
        return json.dumps(report, indent=2)
    lines = [
        f"model     {trained.describe()}",
        f"probe     {options.probe}, fitted to {train_images:,} images of train",
        f"split     {options.split}, {images:,} images",
        f"features  {folder / FOLDER}",
        "",
        table,
    ]
    return "\n".join([*lines, *(f"\ndrawn: {picture}" for picture in pictures)])


def _open_splits(
    trained: TrainedModel, options: EvaluateOptions, layers: list[str], folder: Path
) -> tuple[_Split, _Split]:
    """Opens the train split and ``options.split``, and reads or extracts their features."""
    if "train" not in (splits := available_splits(data_of_checkpoint(trained, options.data))):
        raise UserError(
            f"probe={options.probe} learns from the train split, but the data have only {', '.join(splits)}"
        )
    names = ("train", options.split)
    datasets = [dataset_of_split(trained, options.data, name, any_classes=True) for name in names]
    classes = datasets[0].class_names
    if len(classes) < 2:
        raise UserError(
            f"probe={options.probe}: the train split has one class, {classes[0]}; a classifier needs at least two"
        )
    train, test = (
        features_of_split(trained, options.data, dataset, name, layers, folder, precision=options.precision)
        for name, dataset in zip(names, datasets, strict=True)
    )
    return _Split(datasets[0], train), _Split(datasets[1], test)


def _choose_layers(trained: TrainedModel, options: EvaluateOptions) -> list[str]:
    available = feature_layers(trained.model)
    given = options.probing.layers
    if options.probe == "knn":
        if given not in (None, [LAST_CLS]):
            raise UserError(
                f"probing.layers={','.join(given)}: probe=knn compares {LAST_CLS}; leave probing.layers out"
            )
        return [LAST_CLS]
    if wrong := [layer for layer in given or [] if layer not in available]:
        raise UserError(f"probing.layers={wrong[0]}: {trained.name} has only {', '.join(available)}")
    return list(dict.fromkeys(given)) if given else available


def _knn(train: _Split, test: _Split, trained: TrainedModel) -> dict[str, float]:
    known, queries = train.features[LAST_CLS], test.features[LAST_CLS]
    for name, (k, _) in KNN_PROTOCOLS.items():
        if k > len(known.targets):
            warnings.warn(
                f"{name}: the train split has {len(known.targets)} images, fewer than {k}: all of them are neighbours",
                stacklevel=2,
            )
    tensors = (known.features, known.targets, queries.features, queries.targets)
    train_features, train_labels, test_features, test_labels = (tensor.to(trained.device) for tensor in tensors)
    return knn_accuracies(train_features, train_labels, test_features, test_labels)


def _linear(train: _Split, test: _Split, trained: TrainedModel, layers: list[str]) -> dict[str, dict[str, float]]:
    accuracies: dict[str, dict[str, float]] = {}
    for name, protocol in LINEAR_PROTOCOLS.items():
        for layer in layers:
            known, queries = train.features[layer], test.features[layer]
            tensors = (known.features, known.targets, queries.features, queries.targets)
            accuracies.setdefault(name, {})[layer] = linear_accuracy(
                *(tensor.to(trained.device) for tensor in tensors),
                num_classes=len(train.dataset.class_names),
                protocol=protocol,
            )
    return accuracies


def _draw(train: _Split, test: _Split, path: Path, title: str) -> None:
    known, queries = train.features[LAST_CLS], test.features[LAST_CLS]
    count = len(queries.targets)
    chosen = torch.linspace(0, count - 1, min(_QUERIES, count)).round().long()
    similarity, index = nearest_neighbours(known.features, queries.features[chosen], k=_NEIGHBOURS)

    def panel(split: _Split, place: int) -> tuple[Any, str]:
        features = split.features[LAST_CLS]
        image_CHW = split.dataset[int(features.image_ids[place])][0]
        name = split.dataset.class_names[int(features.targets[place])]
        return restore_pixels(image_CHW, split.dataset.mean, split.dataset.std), name

    rows = []
    for query, places, values in zip(chosen.tolist(), index.tolist(), similarity.tolist(), strict=True):
        nearest = [(*panel(train, place), value) for place, value in zip(places, values, strict=True)]
        rows.append((panel(test, query), nearest))
    draw_neighbours(rows, path, title)
