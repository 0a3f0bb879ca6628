"""The model of a run: from its options and the data it will see."""

from __future__ import annotations

import torch

import vitfast
from vitfast.config.schema import ModelConfig
from vitfast.data import ImageDataset
from vitfast.errors import UserError
from vitfast.models import ImageModel
from vitfast.runs.checkpoint import list_checkpoints, resolve_checkpoint

# fields that follow from elsewhere, and where a user sets them
_SET_ELSEWHERE = {
    "img_size": "model.img_size",
    "drop_path": "model.drop_path",
    "drop_rate": "model.drop_rate",
    "num_classes": "the classes of the data",
    "in_chans": "data.in_chans",
}


def create_training_model(config: ModelConfig, data: ImageDataset) -> ImageModel:
    """Builds the model with as many classes and channels as the data have, at the size of its images.

    Args:
        config: name and fields.
        data: the train split.

    Raises:
        UserError: if the model refuses a field, with its own message, or the checkpoint does not fit.
    """
    for name, place in _SET_ELSEWHERE.items():
        if name in config.fields:
            raise UserError(f"model.fields.{name} cannot be set: it follows from {place}")
    rates = {"drop_path": config.drop_path, "drop_rate": config.drop_rate}
    fields = {**{name: rate for name, rate in rates.items() if rate}, **config.fields}
    try:
        model = vitfast.create_model(
            config.name,
            num_classes=len(data.class_names),
            img_size=data.img_size,
            in_chans=data.in_chans,
            checkpoint=_beginning(config.checkpoint),
            **fields,
        )
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"model.name={config.name}: {error}") from error
    if config.zero_head:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.startswith(model.head_prefixes):
                    parameter.zero_()
    return model


def _beginning(checkpoint: str | None) -> str | None:
    """Of a run's folder its newest valid checkpoint; anything else as it is."""
    if checkpoint is not None and list_checkpoints(checkpoint):
        return str(resolve_checkpoint(checkpoint))
    return checkpoint
