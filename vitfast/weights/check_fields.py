"""Compares the fields of a checkpoint with those of a model."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, NoReturn

from vitfast.errors import UserError
from vitfast.models.model_fields import ModelFields, TransformerFields
from vitfast.models.registry import ARCHITECTURES
from vitfast.weights.infer_fields import infer_fields
from vitfast.weights.source_checkpoint import NAMED_FIELDS, SIZE_FIELDS, SourceCheckpoint

# determine the keys and shapes of the weights
SHAPE_FIELDS = (
    *NAMED_FIELDS,
    "qkv_bias",
    "key_bias",
    "head_type",
    "head_hidden_dim",
    "num_classes",
    "local_up_to_layer",
    "locality_dim",
    "feature_reuse",
    "relation_reuse",
    "reuse_dim",
    "reuse_hidden_dim",
)
# may differ where a newly initialized head is allowed
HEAD_FIELDS = ("head_hidden_dim", "num_classes")
# change the computation but no shape
COMPUTATION_FIELDS = (
    "layer_norm_eps",
    "gelu",
    "pooling",
    "resnet_padding",
    "weight_eps",
    "weight_eps_place",
    "group_norm_eps",
    "projection_norm",
)

_DERIVED = ("num_exits", "grid_size", "grid_sizes")  # properties, which create_model does not accept

_IMAGE_SIZES = (224, 384, *range(16, 1025, 16))  # candidates for the image size of a grid of tokens


def differing_fields(
    checkpoint: SourceCheckpoint, fields: ModelFields, names: Collection[str]
) -> dict[str, tuple[Any, Any]]:
    """Returns for each of the named fields that differs its value in the checkpoint and in the model.

    Where the stored fields and the weights of a checkpoint disagree, the weights apply.
    """
    known = checkpoint.fields | infer_fields(type(fields), checkpoint.state)
    different = {}
    for name in names:
        if name not in known or not hasattr(fields, name):
            continue
        if name in HEAD_FIELDS and checkpoint.extra_head_layer is not None:
            continue
        theirs, ours = known[name], getattr(fields, name)
        if name == "mlp_ratio" and isinstance(fields, TransformerFields):
            ours = fields.mlp_dim / fields.embed_dim  # the ratio after rounding to whole channels
        if name == "head_hidden_dim" and not fields.num_classes:
            ours = 0  # without a head there is no layer before it
        same = math.isclose(theirs, ours) if isinstance(theirs, float) and isinstance(ours, float) else theirs == ours
        if not same:
            different[name] = theirs, ours
    return different


def refuse_differences(
    checkpoint: SourceCheckpoint, model_name: str, different: Mapping[str, tuple[Any, Any]], advice: str
) -> NoReturn:
    """Raises UserError with the fields that differ, and the advice."""
    values = ", ".join(
        f"{name} is {theirs!r} in the file and {ours!r} in the model" for name, (theirs, ours) in different.items()
    )
    raise UserError(f"{checkpoint.path} ({checkpoint.family}) does not fit {model_name}: {values}; {advice}")


def architectures_like(checkpoint: SourceCheckpoint) -> list[str]:
    """Lists the architectures with the sizes of a checkpoint; if none has its image size, those with any image size."""
    if not {"embed_dim", "depth"} <= checkpoint.fields.keys():
        return []
    candidates = {name: fields for name, fields in ARCHITECTURES.items() if type(fields) is checkpoint.fields_type}
    for names in (NAMED_FIELDS, [name for name in NAMED_FIELDS if name not in SIZE_FIELDS]):
        alike = [name for name, fields in candidates.items() if not differing_fields(checkpoint, fields, names)]
        if alike:
            return alike
    return []


def size_advice(checkpoint: SourceCheckpoint, model_name: str, different: Mapping[str, tuple[Any, Any]]) -> str:
    """Says which architectures have the checkpoint's sizes, or else which fields set them."""
    alike = [name for name in architectures_like(checkpoint) if name != model_name]
    if alike and different.keys() & set(NAMED_FIELDS):
        return f"its sizes are those of {', '.join(alike)}"
    fields = {name: theirs for name, (theirs, _) in different.items() if name not in _DERIVED}
    return "build the model with " + ", ".join(f"{name}={theirs!r}" for name, theirs in fields.items())


def image_size_advice(different: Mapping[str, tuple[Any, Any]], fields: ModelFields) -> str:
    """Says which argument to give where only the image size, or the grid of tokens derived from it, differs."""
    theirs, ours = next(iter(different.values()))
    if "img_size" in different:
        return f"give img_size={ours} to resize the position embeddings, or img_size={theirs} to keep them"
    keep = next((size for size in _IMAGE_SIZES if _grid(fields, size) == theirs), None)
    kept = "" if keep is None else f", or img_size={keep} to keep them"
    return f"give img_size={fields.img_size} to resize the position embeddings{kept}"


def _grid(fields: ModelFields, img_size: int) -> Any:
    try:
        resized: Any = replace(fields, img_size=img_size)
    except UserError:
        return None
    return getattr(resized, "grid_sizes", None) or getattr(resized, "grid_size", None)
