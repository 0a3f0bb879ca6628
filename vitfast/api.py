"""Public functions to create models and to load and save weights."""

from __future__ import annotations

import os
from typing import Any

from vitfast.errors import UserError
from vitfast.models.image_model import ImageModel
from vitfast.models.registry import build_model, list_models
from vitfast.weights.hub import download_pretrained
from vitfast.weights.load_weights import load_weights, model_from_checkpoint
from vitfast.weights.save_weights import save_weights

__all__ = ["create_model", "list_models", "load_weights", "save_weights"]


def create_model(
    name: str | None = None,
    *,
    num_classes: int | None = None,
    img_size: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    pretrained: bool = False,
    revision: str | None = None,
    **fields: Any,
) -> ImageModel:
    """Creates a model, randomly initialized or from a checkpoint.

    Args:
        name: a name of ``list_models()``, optionally with timm's tag (``vit_base_patch16_224.augreg_in1k``), one of
            Google's (``ViT-B_16``), or ``timm/NAME`` or ``torchvision/NAME``. None takes the name recorded in a
            checkpoint of vitfast.
        num_classes: outputs of the head; None means the checkpoint's, else 1000; 0 means no head. If it differs from
            the checkpoint's, the head stays randomly initialized.
        img_size: height and width of the images in pixels; None means the checkpoint's, else the architecture's. If it
            differs from the checkpoint's, the position embeddings are resized by the field
            ``position_interpolation``. A file that records no architecture must have the image size of ``name``.
        checkpoint: a run (its best checkpoint), or a checkpoint folder or file, of vitfast or of any system that
            ``load_weights`` supports. Fields that ``name`` leaves open come from it: the number of classes, and its
            system's conventions (``layer_norm_eps``, ``qkv_bias``, ``gelu``, ``head_type``, ``patch_order``,
            ``position_interpolation``).
            ``model.load_report`` lists them and the status of every tensor.
        pretrained: whether to load timm's weights of that name from the Hugging Face hub, or its cache; a tag in
            ``name`` chooses others than timm's default. ``vitfast.preprocessing(model)`` is the transform of images.
        revision: of the hub's files; None: the newest.
        **fields: further fields of the model's family (``vitfast.models.ViTFields`` for a ViT), which override the
            checkpoint's.

    Returns:
        The model, in training mode, on the CPU or the device set by ``with torch.device(…)``.

    Raises:
        UserError: (a ValueError) a name or field is unknown or not allowed, the checkpoint does not fit, or timm is not
            installed.
    """
    given = {"num_classes": num_classes, "img_size": img_size}
    fields |= {field: value for field, value in given.items() if value is not None}
    if pretrained:
        if checkpoint is not None or name is None:
            raise UserError("pretrained=True takes a name and no checkpoint, for example 'vit_tiny_patch16_224'")
        weights, settings = download_pretrained(name, revision)
        model = model_from_checkpoint(name, weights, fields)
        model.pretrained_cfg = {**settings, "input_size": (model.in_chans, model.img_size, model.img_size)}
        return model
    if checkpoint is not None:
        return model_from_checkpoint(name, checkpoint, fields)
    if name is None:
        raise UserError("create_model needs a name, for example 'vit_tiny_patch16_224', or a checkpoint folder")
    return build_model(name, **fields)
