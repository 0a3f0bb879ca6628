"""The accuracy of a kNN classifier on the features of a model in training."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from vitfast.data import ImageDataset
from vitfast.evaluation.features import LAST_CLS, extract_features
from vitfast.evaluation.knn import knn_accuracies
from vitfast.models import ImageModel
from vitfast.training.distributed import Ranks
from vitfast.training.training_data import TrainingData


def knn_metrics(
    model: ImageModel,
    data: TrainingData,
    dataset: ImageDataset,
    ranks: Ranks,
    *,
    precision: str,
    should_stop: Callable[[], bool],
) -> dict[str, Any] | None:
    """Classifies the images of a split by their nearest neighbours in the train split; all ranks must call it.

    Args:
        model: whose features are compared, on its device; its mode is restored.
        data: of the run.
        dataset: the split.
        ranks: each extracts its share of the features, and all get those of all images.
        precision: of ``vitfast.device.autocast``.
        should_stop: called before each batch; True aborts.

    Returns:
        ``knn``, the accuracies of ``knn_accuracies``, and ``images_per_s``; None if it was aborted.
    """
    was_training, start = model.training, time.perf_counter()
    model.eval()
    stopped = False

    def goes_on(_: object) -> bool:
        nonlocal stopped
        stopped = stopped or should_stop()
        return not stopped

    try:
        splits: list[tuple[Tensor, Tensor]] = []
        for split in (data.train_as_evaluated, dataset):
            batches = takewhile(goes_on, data.evaluation_loader(split))
            features, labels = extract_features(model, batches, [LAST_CLS], device=ranks.device, precision=precision)
            if stopped:
                return None
            splits.append((features[LAST_CLS], labels))
    finally:
        model.train(was_training)
    shares = ranks.gather(splits)
    (known, known_labels), (queries, query_labels) = (
        (torch.cat([features for features, _ in parts]), torch.cat([labels for _, labels in parts]))
        for parts in zip(*shares, strict=True)
    )
    accuracies = knn_accuracies(known, known_labels, queries, query_labels)
    images = len(known) + len(queries)
    return {"knn": accuracies, "images_per_s": round(images / (time.perf_counter() - start), 1)}
