"""Builds the model that a checkpoint is of, and fills it."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from vitfast.errors import UserError
from vitfast.models.image_model import ImageModel, ModelFields
from vitfast.models.registry import build_model, resolve_fields, resolve_name
from vitfast.weights.check_fields import (
    HEAD_FIELDS,
    SHAPING_FIELDS,
    architectures_like,
    differing_fields,
    image_size_advice,
    refuse_differences,
    size_advice,
)
from vitfast.weights.checkpoint import SIZE_FIELDS, Checkpoint, read_checkpoint
from vitfast.weights.fill_model import fill_model
from vitfast.weights.state_fields import untold_fields

logger = logging.getLogger(__name__)

# how many times the numbers it holds a file may claim; the details are compared once the model is built
_MAX_CLAIM, _HARMLESS_CLAIM = 2, 1_000_000


def model_from_checkpoint(
    name: str | None, path: str | os.PathLike[str], given_fields: Mapping[str, Any]
) -> ImageModel:
    """Builds and fills a model; see ``vitfast.create_model``.

    Args:
        name: the architecture's, or None to take the checkpoint's.
        path: file or folder.
        given_fields: what the caller wants. ``num_classes`` among them allows a fresh head, ``img_size`` that position
            embeddings are resized.

    Returns:
        The model, with ``load_report``.

    Raises:
        UserError: the checkpoint is damaged, refused or of no known kind, or does not fit the name and fields.
    """
    models = None if name is None else type(resolve_fields(name))
    checkpoint = read_checkpoint(path, models, model_name=name)
    name = _agreed_name(name, checkpoint)
    adopted = {field: value for field, value in checkpoint.adopted_fields.items() if field not in given_fields}
    if "num_classes" not in given_fields:
        adopted |= _number_of_classes(name, checkpoint, given_fields)
    elif given_fields["num_classes"] != checkpoint.fields.get("num_classes"):
        adopted.pop("head_hidden_dim", None)  # as Google fine-tunes: a fresh head is one layer, unless asked otherwise
    all_fields = {**adopted, **given_fields}
    try:
        fields = resolve_fields(name, **all_fields)
    except UserError as error:
        raise UserError(f"{error} (with the fields of {checkpoint.path})") from error
    _check(name, checkpoint, fields, given_fields)
    _check_claims(checkpoint, all_fields)

    model = build_model(name, **all_fields)
    report = fill_model(
        model, checkpoint, may_resize="img_size" in given_fields, may_replace_head="num_classes" in given_fields
    )
    model.load_report = replace(report, fields={} if checkpoint.name else adopted)
    logger.info("%s", model.load_report)
    return model


def _agreed_name(name: str | None, checkpoint: Checkpoint) -> str:
    """Returns the one of both names that is there; two have to mean the same architecture."""
    if checkpoint.name is None:
        if name is None:
            alike = architectures_like(checkpoint)
            sizes = f" (its sizes are those of {', '.join(alike)})" if alike else ""
            raise UserError(
                f"{checkpoint.path} does not say which model it holds; give its name, see vitfast.list_models(){sizes}"
            )
        return name
    try:
        resolve_name(checkpoint.name)
    except UserError as error:
        raise UserError(f"{checkpoint.path}: {error}") from error
    if name is not None and resolve_name(name) != resolve_name(checkpoint.name):
        raise UserError(
            f"{checkpoint.path} holds {checkpoint.name}, not {name}; leave the name out to use the checkpoint's"
        )
    return checkpoint.name


def _number_of_classes(name: str, checkpoint: Checkpoint, given_fields: Mapping[str, Any]) -> dict[str, int]:
    """Reads it off the head, which a model without weights names, where the checkpoint's fields do not tell it."""
    if checkpoint.name is not None or "num_classes" in checkpoint.fields or checkpoint.head_input is not None:
        return {}
    with torch.device("meta"):
        model = build_model(name, **{**checkpoint.adopted_fields, **given_fields})
    head = model.own_keys(checkpoint.state).get(f"{model.head_prefixes[0]}weight")
    return {} if head is None or head.dim() == 0 else {"num_classes": len(head)}


def _check(name: str, checkpoint: Checkpoint, fields: ModelFields, given_fields: Mapping[str, Any]) -> None:
    """Compares the fields before a model of these sizes, which a hostile file may choose, is built."""
    if checkpoint.head_input is not None and "num_classes" not in given_fields:
        raise UserError(
            f"{checkpoint.path}: its head reads {checkpoint.head_input}, a layer that vitfast's models do not have; "
            "give num_classes for a fresh head, or num_classes=0 for none"
        )
    if checkpoint.name is not None and (untold := untold_fields(type(fields), checkpoint.state)):
        raise UserError(f"{checkpoint.path} lacks weights: they do not tell {', '.join(untold)}")
    allowed: tuple[str, ...] = SIZE_FIELDS if "img_size" in given_fields else ()
    allowed += HEAD_FIELDS if "num_classes" in given_fields else ()
    different = differing_fields(checkpoint, fields, [field for field in SHAPING_FIELDS if field not in allowed])
    if different and different.keys() <= set(SIZE_FIELDS):
        refuse_differences(checkpoint, name, different, image_size_advice(different, fields))
    if different:
        refuse_differences(checkpoint, name, different, size_advice(checkpoint, resolve_name(name), different))


def _check_claims(checkpoint: Checkpoint, fields: Mapping[str, Any]) -> None:
    """Refuses a file whose own fields describe a model far larger than the weights it holds, positions apart."""
    if checkpoint.name is None:
        return
    own_head = {name: value for name, value in checkpoint.fields.items() if name == "num_classes"}
    try:
        with torch.device("meta"):
            model = build_model(checkpoint.name, **{**fields, **own_head})
    except UserError as error:
        raise UserError(f"{checkpoint.path}: {error}") from error
    except (RuntimeError, OverflowError, MemoryError, TypeError) as error:  # sizes beyond any tensor's
        raise UserError(f"{checkpoint.path}: its fields describe no model that can be built ({error})") from error
    claimed = sum(tensor.numel() for key, tensor in model.state_dict().items() if not key.endswith("pos_embed"))
    there = sum(tensor.numel() for tensor in checkpoint.state.values())
    if claimed > _MAX_CLAIM * there + _HARMLESS_CLAIM:
        raise UserError(
            f"{checkpoint.path} lacks weights: its fields describe a model of {claimed:,} numbers, it holds {there:,}; "
            "save it again"
        )
