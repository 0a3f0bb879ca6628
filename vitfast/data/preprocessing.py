"""The preprocessing of images that a model was trained with."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision.transforms import v2

from vitfast.data.transforms import eval_transform
from vitfast.errors import UserError
from vitfast.models.preprocessing_settings import preprocessing_settings


def preprocessing(model: nn.Module) -> v2.Compose:
    """Builds the transform from a PIL image to the model's input: resize, centre crop, normalize.

    Args:
        model: a model of timm (also ``timm/NAME``), one of vitfast created with ``pretrained=True`` or from a run, or
            of a name that timm has, one of transformers that was loaded by ``from_pretrained``, or an accelerated one
            of these.

    Returns:
        A transform of ``torchvision.transforms.v2``; its result is ``[C, H, W]``, float32.

    Raises:
        UserError: the model does not know its preprocessing, or it has steps that are not supported.
    """
    arguments = preprocessing_settings(model)
    if arguments is None:
        raise UserError(
            f"this {type(model).__name__} does not know its preprocessing: it was not created with pretrained=True, or "
            "loaded by from_pretrained; build it with vitfast.data.transforms.eval_transform"
        )
    transform: Any = eval_transform(**arguments)
    return transform
