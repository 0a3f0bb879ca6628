"""Loads the model of a checkpoint, and writes quantized checkpoints."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from vitfast.config.schema import WEIGHTS
from vitfast.errors import UserError, explain_os_error, one_line
from vitfast.models import ImageModel
from vitfast.quantization.quantize import describe_quantization
from vitfast.quantization.quantized_file import load_packed_state, pack_state
from vitfast.quantization.record import quantization_record, quantize_from_record
from vitfast.runs.run_directory import CONFIG
from vitfast.weights.checkpoint import best_step, load_weights_file, resolve_checkpoint, write_checkpoint
from vitfast.weights.load_weights import build_stored_model
from vitfast.weights.manifest import EMA_FILE, CheckpointError, read_manifest, require_entries
from vitfast.weights.source_checkpoint import stored_weights

_SOURCE = "quantized_from"

# attributes of an ImageDataset that a manifest records, so that evaluation and prediction repeat them
PREPROCESSING = ("img_size", "in_chans", "mean", "std", "resize", "interpolation", "crop_pct")


@dataclass(frozen=True)
class TrainedModel:
    """A model from a checkpoint.

    Attributes:
        model: in evaluation mode, on its device.
        checkpoint: its folder.
        manifest: of the checkpoint.
        weights: ``ema`` or ``model``.
        choice: why this checkpoint of a run was chosen; empty if it was given itself.
    """

    model: ImageModel
    checkpoint: Path
    manifest: dict[str, Any]
    weights: str
    choice: str = ""

    @property
    def name(self) -> str:
        """Name of the model."""
        return str(self.manifest["model"]["name"])

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(chain(self.model.parameters(), self.model.buffers())).device  # accelerated models have buffers only

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of the logits."""
        return list(self.manifest["class_names"])

    @property
    def data(self) -> dict[str, Any]:
        """The preprocessing of images; manifests of early versions have no ``resize`` and mean ``short_side``."""
        return {"resize": "short_side", **self.manifest["data"]}

    @property
    def exit_thresholds(self) -> list[float] | None:
        """The confidence thresholds of the model's exits; None if they are not calibrated."""
        return self.manifest.get("exit_thresholds")

    def describe(self) -> str:
        """One line for reports."""
        kind = "averaged weights (EMA)" if self.weights == "ema" else "plain weights"
        numbers = describe_quantization(self.model)
        choice = f" ({self.choice})" if self.choice else ""
        return f"{self.name}, {numbers + ', ' if numbers else ''}{kind} of {self.checkpoint}{choice}"


def refuse_name(path: str, name: str | None) -> None:
    """Raises UserError if a model is named beside a file that records its model."""
    if name is not None:
        raise UserError(f"model={name} is for weights files, and checkpoint={path} records its model; leave model= out")


def load_trained_model(
    path: str, *, weights: str = "auto", device: torch.device, headless: bool = False
) -> TrainedModel:
    """Verifies all files of a checkpoint and loads its model, quantized as it was saved.

    Args:
        path: a run's folder (its best checkpoint by validation top-1, or the newest without a validation) or a
            checkpoint folder.
        weights: ``ema``, ``model``, or ``auto``: the average if the checkpoint has one.
        device: of the model.
        headless: whether the model may be one without classes, of training without labels.

    Raises:
        UserError: if there is no valid checkpoint, it does not have these weights, or has no classes.
    """
    if weights not in WEIGHTS:
        raise UserError(f"weights={weights}; it must be one of {', '.join(WEIGHTS)}")
    checkpoint = resolve_checkpoint(path, best=True)
    manifest = read_manifest(checkpoint)
    choice = ""
    if checkpoint != Path(path):
        is_best = best_step(manifest) is not None and best_step(manifest) == manifest.get("step")
        choice = "the best of the run" if is_best else "the newest of the run"
    require_entries(checkpoint, manifest, "model", "class_names", "data")
    if weights == "auto":
        weights = "ema" if EMA_FILE in manifest["files"] else "model"
    state = load_weights_file(checkpoint, weights)
    try:
        model = build_stored_model(stored_weights(checkpoint, manifest["model"], state))
        if manifest.get("quantization") is not None:
            quantize_from_record(model, manifest["quantization"])
        load_packed_state(model, state, str(checkpoint))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{checkpoint} does not fit this version of vitfast: {one_line(error)}") from error
    _check_sizes(checkpoint, manifest, model)
    if not model.num_classes and not headless:
        raise UserError(
            f"{checkpoint} has features but no classes, since it was trained without labels; evaluate it with "
            f"probe=knn or probe=linear, or add classes by recipe=finetune model.checkpoint={path}"
        )
    return TrainedModel(model.eval().to(device), checkpoint, manifest, weights, choice)


def _check_sizes(checkpoint: Path, manifest: dict[str, Any], model: ImageModel) -> None:
    """Compares the model with the class names and the preprocessing beside it."""
    data = manifest["data"]
    if missing := [name for name in PREPROCESSING if name not in data and name != "resize"]:
        raise CheckpointError(f"{checkpoint} is damaged: its manifest lacks data.{missing[0]}; use another checkpoint")
    # training without labels records the names of the classes for its kNN classifier
    pairs = [("class names", len(manifest["class_names"]), model.num_classes)] if model.num_classes else []
    pairs += [("pixels", data["img_size"], model.img_size)]
    pairs += [("channels", count, model.in_chans) for count in (data["in_chans"], len(data["mean"]), len(data["std"]))]
    for what, recorded, expected in pairs:
        if recorded != expected:
            raise CheckpointError(
                f"{checkpoint} is damaged: its manifest has {recorded} {what}, its model {expected}; use another one"
            )


def check_target(folder: Path) -> None:
    """Raises UserError unless ``folder`` is new, empty, or a quantized checkpoint, which may be replaced."""
    if not folder.exists():
        return
    try:
        replaceable = folder.is_dir() and _SOURCE in read_manifest(folder)
    except CheckpointError:
        replaceable = folder.is_dir() and not any(folder.iterdir())
    if not replaceable:
        raise UserError(
            f"output={folder} exists and is not a quantized checkpoint, so it is not replaced; choose another folder"
        )


def write_quantized_checkpoint(folder: Path, trained: TrainedModel, metrics: dict[str, Any]) -> None:
    """Writes a converted model as a checkpoint for all commands; replaces an earlier quantized checkpoint.

    The weights are packed, see ``pack_state``; the manifest records the quantization.

    Raises:
        UserError: if it cannot be written.
    """
    kept = ("model", "class_names", "data", "epoch", "step", "exit_thresholds")
    manifest = {key: trained.manifest[key] for key in kept if key in trained.manifest}
    manifest |= {
        "quantization": quantization_record(trained.model),
        "metrics": metrics,
        _SOURCE: {"checkpoint": str(trained.checkpoint), "weights": trained.weights},
    }
    replaced = folder.with_name(f".{folder.name}.replaced")
    with explain_os_error(f"output={folder} cannot be written"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        for leftover in (replaced, folder.with_name(f".{folder.name}.writing")):
            shutil.rmtree(leftover, ignore_errors=True)
        write_checkpoint(folder, model=pack_state(trained.model), manifest=manifest)
        config = trained.checkpoint.parent / CONFIG
        if config.is_file():  # which names the data
            shutil.copyfile(config, folder / CONFIG)
    shutil.rmtree(replaced, ignore_errors=True)
