"""The facade: what ``import vitfast`` shows of the models."""

from __future__ import annotations

import os
from typing import Any

from vitfast.errors import UserError
from vitfast.models.image_model import ImageModel
from vitfast.models.load_state import load_state
from vitfast.models.registry import build_model, list_models, resolve_name
from vitfast.models.saved_model import SavedModel, read_saved_model

__all__ = ["create_model", "list_models"]


def create_model(
    name: str | None = None,
    *,
    num_classes: int | None = None,
    img_size: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    **fields: Any,
) -> ImageModel:
    """Creates a model, freshly initialized or from a checkpoint.

    Args:
        name: a name of ``list_models()``, optionally with timm's tag (``vit_base_patch16_224.augreg_in1k``), or one of
            Google's (``ViT-B_16``). None takes the name that a checkpoint folder holds.
        num_classes: outputs of the head; None means the checkpoint's, else 1000; 0 means no head. Where it is given and
            differs from the checkpoint's, the head stays freshly initialized.
        img_size: height and width of the images in pixels; None means the checkpoint's, else the architecture's. Where
            it is given and differs from the checkpoint's, the position embeddings are resized by the field
            ``position_interpolation``.
        checkpoint: a vitfast checkpoint folder, or a ``.safetensors`` file with timm's keys.
        **fields: further fields of the model's family (``vitfast.models.ViTFields`` for a ViT). They override the
            checkpoint's.

    Returns:
        The model, in training mode and on the CPU, or on the device that ``with torch.device(…)`` sets.

    Raises:
        UserError: (a ValueError) a name or field is unknown or not allowed, or the checkpoint does not fit.
    """
    given = {"num_classes": num_classes, "img_size": img_size}
    fields |= {field: value for field, value in given.items() if value is not None}
    if checkpoint is None:
        if name is None:
            raise UserError("create_model needs a name, for example 'vit_tiny_patch16_224', or a checkpoint folder")
        return build_model(name, **fields)

    saved = read_saved_model(checkpoint)
    model = build_model(_agreed_name(name, saved), **{**saved.fields, **fields})
    load_state(
        model,
        saved.state,
        source=str(saved.path),
        may_resize=img_size is not None,
        may_replace_head=num_classes is not None,
    )
    return model


def _agreed_name(name: str | None, saved: SavedModel) -> str:
    """Returns the one of both names that is there; two have to mean the same architecture."""
    if saved.name is None:
        if name is None:
            raise UserError(f"{saved.path} does not say which model it holds; give its name, see vitfast.list_models()")
        return name
    if name is not None and resolve_name(name) != resolve_name(saved.name):
        raise UserError(f"{saved.path} holds {saved.name}, not {name}; leave the name out to use the checkpoint's")
    return saved.name
