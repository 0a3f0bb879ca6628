"""``load_weights``, and ``model_from_checkpoint``, with which ``create_model`` builds and fills a model."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from vitfast.errors import UserError
from vitfast.layers.position_embedding import PositionInterpolation
from vitfast.models.image_model import ImageModel
from vitfast.models.load_report import LoadReport
from vitfast.models.model_fields import ModelFields, TransformerFields, check_field_type
from vitfast.models.registry import build_model, resolve_fields, resolve_name
from vitfast.weights.check_fields import (
    COMPUTATION_FIELDS,
    HEAD_FIELDS,
    SHAPE_FIELDS,
    architectures_like,
    differing_fields,
    image_size_advice,
    refuse_differences,
    size_advice,
)
from vitfast.weights.fill_model import fill_model
from vitfast.weights.infer_fields import uninferable_fields
from vitfast.weights.source_checkpoint import (
    NAMED_FIELDS,
    SIZE_FIELDS,
    SourceCheckpoint,
    read_source_checkpoint,
)

logger = logging.getLogger(__name__)

# A file may describe a model of at most this many times the elements it holds, plus a constant; shapes are compared
# once the model is built.
_MAX_CLAIM, _HARMLESS_CLAIM = 2, 1_000_000


def load_weights(
    model: ImageModel,
    path: str | os.PathLike[str],
    *,
    strict: bool = True,
    num_classes: int | None = None,
    position_interpolation: PositionInterpolation | None = None,
) -> LoadReport:
    """Loads weights into a model, in place.

    Reads checkpoints of vitfast, timm, torchvision, Hugging Face, Google (``.npz``), DeiT, DINOv2, DINOv3, CLIP,
    EVA-02, ConViT, T2T-ViT, the Dynamic Vision Transformer (with its thresholds, which become ``model.saved_exits``),
    ViT-pytorch (jeonsworld), myrtle-vision and VISSL; the keys determine the format. The file is not trusted: no code
    in it is executed. Position embeddings of another image size are resized to the model's.

    A field that differs between file and model is an error, whatever ``strict`` is, because the model would compute
    something else: ``create_model(name, checkpoint=path)`` builds a model with the file's fields instead.

    Args:
        model: from ``create_model``. An error leaves it unchanged.
        path: a file, a checkpoint folder of vitfast or Hugging Face, or a run (its best checkpoint).
        strict: whether missing, unexpected and misshapen weights are an error; otherwise the report lists them, and the
            model keeps its weights.
        num_classes: the model's number of classes; if given, the model keeps its head where the file's head has another
            number of classes.
        position_interpolation: how position embeddings are resized, see ``resize_position_embedding``; None: as the
            file's own system does.

    Returns:
        What was loaded, resized, skipped and missing.

    Raises:
        UserError: the file is damaged, refused or of no supported format, or does not fit.
    """
    if not isinstance(model, ImageModel):
        raise UserError(f"load_weights fills models from vitfast.create_model; got a {type(model).__name__}")
    if num_classes is not None and num_classes != model.num_classes:
        raise UserError(f"num_classes={num_classes}, but the model has {model.num_classes}; give the model's number")
    if position_interpolation is not None:
        check_field_type(TransformerFields, "position_interpolation", position_interpolation)

    checkpoint = read_source_checkpoint(path, type(model.fields), model_name=model.model_name)
    _check_model(model, checkpoint, keep_head=num_classes is not None)
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


def model_from_checkpoint(
    name: str | None, path: str | os.PathLike[str], given_fields: Mapping[str, Any]
) -> ImageModel:
    """Builds and fills a model, with ``load_report``; see ``vitfast.create_model``.

    ``num_classes`` in ``given_fields`` allows a newly initialized head, ``img_size`` resized position embeddings.
    """
    fields_type = None if name is None else type(resolve_fields(name))
    checkpoint = read_source_checkpoint(path, fields_type, model_name=name)
    name = _agreed_name(name, checkpoint)
    adopted = {field: value for field, value in checkpoint.adopted_fields.items() if field not in given_fields}
    if "num_classes" not in given_fields:
        adopted |= _head_classes(name, checkpoint, given_fields)
    elif given_fields["num_classes"] != checkpoint.fields.get("num_classes"):
        adopted.pop("head_hidden_dim", None)  # as in Google's fine-tuning, a new head is one layer unless given
    model = _build_checked(name, checkpoint, adopted, given_fields)
    report = fill_model(
        model, checkpoint, may_resize="img_size" in given_fields, may_replace_head="num_classes" in given_fields
    )
    model.load_report = replace(report, fields={} if checkpoint.name else adopted)
    logger.info("%s", model.load_report)
    return model


def build_stored_model(checkpoint: SourceCheckpoint) -> ImageModel:
    """Builds the model that a checkpoint of vitfast records, without its weights.

    Nothing is allocated before the fields are checked and compared with the weights, since a hostile file may choose
    them.

    Raises:
        UserError: a field is unknown or not allowed, or does not fit the weights.
    """
    return _build_checked(_agreed_name(None, checkpoint), checkpoint, checkpoint.fields, {})


def stored_model_fields(checkpoint: SourceCheckpoint) -> tuple[str, ModelFields]:
    """Returns the name and the fields of the model that ``build_stored_model`` builds, after the same checks."""
    name = _agreed_name(None, checkpoint)
    return name, resolve_fields(name, **_checked_fields(name, checkpoint, checkpoint.fields, {}))


def _build_checked(
    name: str, checkpoint: SourceCheckpoint, adopted: Mapping[str, Any], given_fields: Mapping[str, Any]
) -> ImageModel:
    """Builds a model with the fields of a checkpoint and those of the caller, which come first."""
    return build_model(name, **_checked_fields(name, checkpoint, adopted, given_fields))


def _checked_fields(
    name: str, checkpoint: SourceCheckpoint, adopted: Mapping[str, Any], given_fields: Mapping[str, Any]
) -> dict[str, Any]:
    all_fields = {**adopted, **given_fields}
    try:
        fields = resolve_fields(name, **all_fields)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{error} (with the fields of {checkpoint.path})") from error
    _check_given(name, checkpoint, fields, given_fields)
    _check_claims(checkpoint, all_fields)
    return all_fields


def _check_model(model: ImageModel, checkpoint: SourceCheckpoint, *, keep_head: bool) -> None:
    """Refuses fields that differ from the model's, except the image size and, with ``keep_head``, the head's."""
    ignored = (*SIZE_FIELDS, *HEAD_FIELDS) if keep_head else SIZE_FIELDS
    different = differing_fields(checkpoint, model.fields, (*SHAPE_FIELDS, *COMPUTATION_FIELDS))
    different = {field: values for field, values in different.items() if field not in ignored}
    keep_advice = f"give load_weights num_classes={model.num_classes} to keep the model's head"
    if different:
        if "num_classes" in different and different.keys() <= set(HEAD_FIELDS):
            advice = keep_advice
        elif different.keys() & set(NAMED_FIELDS):
            advice = size_advice(checkpoint, model.model_name, different)
        else:
            call = f"vitfast.create_model({model.model_name!r}, checkpoint={str(checkpoint.path)!r})"
            advice = f"{call} builds a model with the file's fields"
        refuse_differences(checkpoint, model.model_name, different, advice)
    if checkpoint.extra_head_layer is not None and model.num_classes and not keep_head:
        raise UserError(_unsupported_head(checkpoint, keep_advice))


def _check_given(name: str, checkpoint: SourceCheckpoint, fields: ModelFields, given_fields: Mapping[str, Any]) -> None:
    """Compares the fields before a model is built."""
    if checkpoint.extra_head_layer is not None and "num_classes" not in given_fields:
        advice = "give num_classes for a newly initialized head, or num_classes=0 for none"
        raise UserError(_unsupported_head(checkpoint, advice))
    if checkpoint.name is not None and (missing := uninferable_fields(fields, checkpoint.state)):
        raise UserError(
            f"{checkpoint.path} lacks weights: they do not determine {', '.join(missing)}; use another checkpoint"
        )
    allowed: tuple[str, ...] = SIZE_FIELDS if "img_size" in given_fields else ()
    allowed += HEAD_FIELDS if "num_classes" in given_fields else ()
    different = differing_fields(checkpoint, fields, [field for field in SHAPE_FIELDS if field not in allowed])
    if different and different.keys() <= set(SIZE_FIELDS):
        refuse_differences(checkpoint, name, different, image_size_advice(different, fields))
    if different:
        refuse_differences(checkpoint, name, different, size_advice(checkpoint, resolve_name(name), different))


def _unsupported_head(checkpoint: SourceCheckpoint, advice: str) -> str:
    return (
        f"{checkpoint.path}: its head has {checkpoint.extra_head_layer}, a layer that vitfast's models do not have; "
        f"{advice}"
    )


def _agreed_name(name: str | None, checkpoint: SourceCheckpoint) -> str:
    """Returns the given or stored name; if there are two, they must mean the same architecture."""
    if checkpoint.name is None:
        if name is None:
            alike = architectures_like(checkpoint)
            sizes = f" (its sizes are those of {', '.join(alike)})" if alike else ""
            raise UserError(
                f"{checkpoint.path} does not say which model it holds; give its name, see vitfast.list_models(){sizes}"
            )
        return name
    try:
        stored = resolve_name(checkpoint.name)
    except UserError as error:
        raise UserError(f"{checkpoint.path}: {error}") from error
    if name is not None and resolve_name(name) != stored:
        raise UserError(
            f"{checkpoint.path} holds {checkpoint.name}, not {name}; leave the name out to use the checkpoint's"
        )
    return checkpoint.name


def _head_classes(name: str, checkpoint: SourceCheckpoint, given_fields: Mapping[str, Any]) -> dict[str, int]:
    """Reads ``num_classes`` from the head's weight if no field states it; a meta model tells the head's key."""
    if checkpoint.name is not None or "num_classes" in checkpoint.fields or checkpoint.extra_head_layer is not None:
        return {}
    with torch.device("meta"):
        model = build_model(name, **{**checkpoint.adopted_fields, **given_fields})
    head = model.adapt_state(checkpoint.state).get(f"{model.head_prefixes[0]}weight")
    return {} if head is None or head.dim() == 0 else {"num_classes": len(head)}


def _check_claims(checkpoint: SourceCheckpoint, fields: Mapping[str, Any]) -> None:
    """Refuses a file whose fields describe a model far larger than its weights, position embeddings excluded."""
    if checkpoint.name is None:
        return
    stored_head = {name: value for name, value in checkpoint.fields.items() if name == "num_classes"}
    try:
        with torch.device("meta"):
            model = build_model(checkpoint.name, **{**fields, **stored_head})
    except UserError as error:
        raise UserError(f"{checkpoint.path}: {error}") from error
    except (RuntimeError, OverflowError, MemoryError, TypeError) as error:  # sizes that no tensor can have
        raise UserError(
            f"{checkpoint.path}: its fields describe no model that can be built ({error}); save it again"
        ) from error
    tensors = (*model.named_parameters(), *model.named_buffers())
    claimed = sum(tensor.numel() for key, tensor in tensors if not key.endswith("pos_embed"))
    stored = sum(tensor.numel() for tensor in checkpoint.state.values())
    if claimed > _MAX_CLAIM * stored + _HARMLESS_CLAIM:
        raise UserError(
            f"{checkpoint.path} lacks weights: its fields describe a model of {claimed:,} elements, it holds "
            f"{stored:,}; save it again"
        )
