"""Loads a checkpoint of any known kind into a model that is already built."""

from __future__ import annotations

import logging
import os

from vitfast.errors import UserError
from vitfast.layers.position_embedding import PositionInterpolation
from vitfast.models.field_checks import check_field_type
from vitfast.models.image_model import ImageModel
from vitfast.models.load_report import LoadReport
from vitfast.models.vit_fields import ViTFields
from vitfast.weights.check_fields import (
    HEAD_FIELDS,
    MEANING_FIELDS,
    SHAPING_FIELDS,
    differing_fields,
    refuse_differences,
    size_advice,
)
from vitfast.weights.checkpoint import NAMED_FIELDS, SIZE_FIELDS, Checkpoint, read_checkpoint
from vitfast.weights.fill_model import fill_model

logger = logging.getLogger(__name__)


def load_weights(
    model: ImageModel,
    path: str | os.PathLike[str],
    *,
    strict: bool = True,
    num_classes: int | None = None,
    position_interpolation: PositionInterpolation | None = None,
) -> LoadReport:
    """Loads weights into a model, in place.

    Reads vitfast's own checkpoints, timm's, torchvision's, Hugging Face's, Google's ``.npz``, DeiT's, ConViT's,
    T2T-ViT's, the Dynamic Vision Transformer's (with its thresholds, which become ``model.saved_exits``), ViT-pytorch's
    (jeonsworld), myrtle-vision's and VISSL's, and tells them apart by their keys. The file is not trusted: nothing in
    it is executed. Position embeddings of another image size are resized to the model's.

    A field that differs between file and model is refused, whatever ``strict`` says, because the weights would compute
    something else: ``create_model(name, checkpoint=path)`` builds a model with the file's fields instead.

    Args:
        model: from ``create_model``. An error leaves it as it was.
        path: a file, or a checkpoint folder of vitfast or Hugging Face.
        strict: whether weights that are missing, unexpected or of another shape are an error; else the report lists
            them, and the model keeps its own.
        num_classes: the model's number of classes, given to allow that its head stays as it is where the file's has
            another number of classes.
        position_interpolation: how position embeddings are resized, see ``resize_position_embedding``; None means as
            the file's own system does it.

    Returns:
        What became of every tensor.

    Raises:
        UserError: the file is damaged, refused or of no known kind, or does not fit.
    """
    if not isinstance(model, ImageModel):
        raise UserError(f"load_weights fills models from vitfast.create_model; got a {type(model).__name__}")
    if num_classes is not None and num_classes != model.num_classes:
        raise UserError(f"num_classes={num_classes}, but the model has {model.num_classes}; give its own number")
    if position_interpolation is not None:
        check_field_type(ViTFields, "position_interpolation", position_interpolation)

    checkpoint = read_checkpoint(path, type(model.fields), model_name=model.model_name)
    _check(model, checkpoint, fresh_head=num_classes is not None)
    report = fill_model(
        model,
        checkpoint,
        may_resize=True,
        may_replace_head=num_classes is not None,
        strict=strict,
        position_interpolation=position_interpolation or checkpoint.fields.get("position_interpolation"),
    )
    logger.info("%s", report)
    return report


def _check(model: ImageModel, checkpoint: Checkpoint, *, fresh_head: bool) -> None:
    """Refuses other fields than the model's, but for the image size and, with ``fresh_head``, those of the head."""
    different = differing_fields(checkpoint, model.fields, (*SHAPING_FIELDS, *MEANING_FIELDS))
    different = {field: values for field, values in different.items() if field not in SIZE_FIELDS}
    if fresh_head:
        different = {field: values for field, values in different.items() if field not in HEAD_FIELDS}
    keep_head = f"give load_weights num_classes={model.num_classes} to keep the model's own head"
    if different:
        if "num_classes" in different and different.keys() <= set(HEAD_FIELDS):
            advice = keep_head
        elif different.keys() & set(NAMED_FIELDS):
            advice = size_advice(checkpoint, model.model_name, different)
        else:
            call = f"vitfast.create_model({model.model_name!r}, checkpoint={str(checkpoint.path)!r})"
            advice = f"{call} builds a model with the file's fields"
        refuse_differences(checkpoint, model.model_name, different, advice)
    if checkpoint.head_input is not None and model.num_classes and not fresh_head:
        raise UserError(
            f"{checkpoint.path}: its head reads {checkpoint.head_input}, a layer that vitfast's models do not have; "
            f"{keep_head}"
        )
