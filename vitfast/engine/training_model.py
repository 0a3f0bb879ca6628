"""The model of a run: from its options and the data it will see."""

from __future__ import annotations

from torch import nn

import vitfast
from vitfast.config.schema import ModelConfig
from vitfast.data import ImageDataset
from vitfast.errors import UserError

# fields that follow from elsewhere, and where a user sets them
_SET_ELSEWHERE = {
    "img_size": "model.img_size",
    "drop_path": "model.drop_path",
    "drop_rate": "model.drop_rate",
    "num_classes": "the classes of the data",
    "in_chans": "data.in_chans",
}


def create_training_model(config: ModelConfig, data: ImageDataset) -> nn.Module:
    """Builds the model with as many classes and channels as the data have, at the size of its images.

    Args:
        config: name and fields.
        data: the train split.

    Raises:
        UserError: if the model refuses a field, with its own message.
    """
    for name, place in _SET_ELSEWHERE.items():
        if name in config.fields:
            raise UserError(f"model.fields.{name} cannot be set: it follows from {place}")
    fields = {"drop_path": config.drop_path, "drop_rate": config.drop_rate, **config.fields}
    try:
        return vitfast.create_model(
            config.name,
            num_classes=len(data.class_names),
            img_size=data.img_size,
            in_chans=data.in_chans,
            **fields,
        )
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"model.name={config.name}: {error}") from error
