"""A model as training left it, ready to be measured or used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import vitfast
from vitfast.errors import UserError
from vitfast.models import ImageModel
from vitfast.quantization.packed_state import load_packed_state
from vitfast.quantization.record import describe_quantization, quantize_from_record
from vitfast.runs.checkpoint import (
    EMA_FILE,
    CheckpointError,
    load_weights_file,
    read_manifest_file,
    resolve_checkpoint,
)

WEIGHTS = ("auto", "ema", "model")


@dataclass(frozen=True)
class TrainedModel:
    """A model from a checkpoint.

    Attributes:
        model: in evaluation mode, on its device.
        checkpoint: the folder it came from.
        manifest: of the checkpoint.
        weights: ``ema`` or ``model``.
    """

    model: ImageModel
    checkpoint: Path
    manifest: dict[str, Any]
    weights: str

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of the logits."""
        return list(self.manifest["class_names"])

    @property
    def data(self) -> dict[str, Any]:
        """How images are read, from the manifest; one without ``resize`` is from when there was only ``short_side``."""
        return {"resize": "short_side", **self.manifest["data"]}

    @property
    def exit_thresholds(self) -> list[float] | None:
        """The thresholds at which images leave the model's exits; None where they have not been calibrated."""
        return self.manifest.get("exit_thresholds")

    def describe(self) -> str:
        """One line for people."""
        kind = "averaged weights (EMA)" if self.weights == "ema" else "plain weights"
        numbers = describe_quantization(self.model)
        return f"{self.manifest['model']['name']}, {numbers + ', ' if numbers else ''}{kind} of {self.checkpoint}"


def load_trained_model(path: str, *, weights: str = "auto", device: torch.device) -> TrainedModel:
    """Loads a checkpoint, all of whose files are checked first; one of a quantized model computes as that did.

    Args:
        path: a run's folder (its newest valid checkpoint) or a checkpoint folder.
        weights: ``ema``, ``model``, or ``auto``: the average if the checkpoint has one.
        device: where the model goes.

    Raises:
        UserError: if there is no valid checkpoint, or it lacks the weights asked for.
    """
    if weights not in WEIGHTS:
        raise UserError(f"weights={weights}; it must be one of {', '.join(WEIGHTS)}")
    checkpoint = resolve_checkpoint(path)
    manifest = read_manifest_file(checkpoint)
    if weights == "auto":
        weights = "ema" if EMA_FILE in manifest["files"] else "model"
    state = load_weights_file(checkpoint, weights)
    try:
        model = vitfast.create_model(manifest["model"]["name"], **manifest["model"]["fields"])
        if manifest.get("quantization") is not None:
            quantize_from_record(model, manifest["quantization"])
        load_packed_state(model, state, str(checkpoint))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{checkpoint} does not fit this version of vitfast: {error}") from error
    return TrainedModel(model.eval().to(device), checkpoint, manifest, weights)
