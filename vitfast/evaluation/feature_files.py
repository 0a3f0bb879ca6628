"""Features on disk: extracted once for each model, split and layer, and read again as long as nothing changed."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitfast import __version__
from vitfast.config.data_schema import EvaluateDataOptions
from vitfast.data import ImageDataset
from vitfast.errors import UserError, explain_os_error
from vitfast.evaluation.checkpoint_data import data_of_checkpoint, loader_of_split
from vitfast.evaluation.features import extract_features
from vitfast.models import ImageModel
from vitfast.quantization.record import quantization_record
from vitfast.runs.trained_model import PREPROCESSING, TrainedModel
from vitfast.weights.save_weights import write_safetensors
from vitfast.weights.weight_file import read_safetensors

_FORMAT_VERSION = 1


@dataclass(frozen=True)
class Features:
    """Features of a split.

    Attributes:
        features: ``[N, C]`` float32.
        targets: labels ``[N]`` int64.
        image_ids: indices of the images in the data set, ``[N]`` int64; it lacks images that cannot be read.
    """

    features: Tensor
    targets: Tensor
    image_ids: Tensor


def features_of_split(
    trained: TrainedModel,
    overrides: EvaluateDataOptions,
    dataset: ImageDataset,
    split: str,
    layers: list[str],
    folder: Path,
    *,
    precision: str = "fp32",
) -> dict[str, Features]:
    """Reads the features of a split from files; extracts and writes those that do not exist yet.

    A file ``SPLIT-LAYER-KEY.safetensors`` belongs to one content of weights, preprocessing and images; see
    ``ImageDataset.fingerprint`` for the latter. A damaged file is replaced.

    Args:
        trained: the model.
        overrides: of its data.
        dataset: the split, in order and without augmentation.
        split: its name.
        layers: of ``feature_layers``.
        folder: of the files, created if missing.
        precision: as in ``extract_features``.

    Returns:
        The features by layer.

    Raises:
        UserError: an image cannot be read, features are not finite, or files cannot be written.
    """
    data = {name: getattr(dataset, name) for name in PREPROCESSING}
    data |= {"images": dataset.fingerprint(), "on_corrupt": data_of_checkpoint(trained, overrides).on_corrupt}
    shared = {"format": _FORMAT_VERSION, "vitfast": __version__, "model": _model_digest(trained.model), **data}
    keys = {
        layer: json.dumps({**shared, "precision": precision, "split": split, "layer": layer}, sort_keys=True)
        for layer in layers
    }
    paths = {
        layer: folder / f"{split}-{layer}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.safetensors"
        for layer, key in keys.items()
    }
    found = {layer: _read(paths[layer], keys[layer]) for layer in layers}
    missing = [layer for layer in layers if found[layer] is None]
    if missing:
        unwritable = (f"features cannot be written to {folder}", "; give another probing.folder")
        with explain_os_error(*unwritable):  # before the images are read
            folder.mkdir(parents=True, exist_ok=True)
        loader = loader_of_split(trained, overrides, dataset)
        extracted, targets = extract_features(
            trained.model, loader, missing, device=trained.device, precision=precision
        )
        ids = torch.tensor([index for index in range(len(dataset)) if index not in dataset.bad_images])
        for layer in missing:
            found[layer] = features = Features(extracted[layer], targets, ids)
            metadata = {"key": keys[layer], "sha256": content_digest(vars(features).items())}
            with explain_os_error(*unwritable):
                write_safetensors(vars(features), paths[layer], metadata)
    return {layer: features for layer, features in found.items() if features is not None}


def _read(path: Path, key: str) -> Features | None:
    """Reads a file if it exists; warns and returns None if it does not hold what its name says."""
    if not path.is_file():
        return None
    try:
        file = read_safetensors(path)
    except UserError:
        pass
    else:
        stored = {name: file.tensors[name] for name in Features.__dataclass_fields__ if name in file.tensors}
        if file.metadata == {"key": key, "sha256": content_digest(stored.items())} and len(stored) == 3:
            return Features(**stored)
    warnings.warn(f"{path} is damaged or was changed; the features are computed again", stacklevel=2)
    return None


def _model_digest(model: ImageModel) -> str:
    record = [model.model_name, model.model_fields, quantization_record(model)]
    return content_digest(model.state_dict().items(), json.dumps(record, sort_keys=True, default=str))


def content_digest(tensors: Iterable[tuple[str, Any]], text: str = "") -> str:
    """Returns the SHA-256 of named tensors, with their types and shapes, and of a text."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in tensors:
        if isinstance(tensor, Tensor):
            digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
