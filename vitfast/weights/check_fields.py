"""Whether a checkpoint and a model mean the same architecture, field by field."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, NoReturn

from vitfast.errors import UserError
from vitfast.models.image_model import ModelFields
from vitfast.models.registry import ARCHITECTURES
from vitfast.models.transformer_fields import TransformerFields
from vitfast.weights.checkpoint import NAMED_FIELDS, SIZE_FIELDS, Checkpoint
from vitfast.weights.state_fields import state_fields

# which weights there are, and their shapes
SHAPING_FIELDS = (
    *NAMED_FIELDS,
    "qkv_bias",
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
# what may differ where a fresh head is wanted
HEAD_FIELDS = ("head_hidden_dim", "num_classes")
# what they mean, which no shape shows
MEANING_FIELDS = (
    "layer_norm_eps",
    "gelu",
    "pooling",
    "resnet_padding",
    "weight_eps",
    "weight_eps_place",
    "group_norm_eps",
    "projection_norm",
)

# what follows from other fields
_DERIVED = ("num_exits", "grid_size", "grid_sizes")

# what is tried to explain a grid of tokens
_IMAGE_SIZES = (224, 384, *range(16, 1025, 16))


def known_fields(checkpoint: Checkpoint, fields: ModelFields) -> dict[str, Any]:
    """All that a checkpoint says of the fields of a model; where a file and its weights disagree, the weights count."""
    known = dict(checkpoint.fields) | state_fields(type(fields), checkpoint.state)
    if checkpoint.head_input is not None:
        known = {name: value for name, value in known.items() if name not in HEAD_FIELDS}
    return known


def differing_fields(checkpoint: Checkpoint, fields: ModelFields, names: Collection[str]) -> dict[str, tuple[Any, Any]]:
    """Returns for each of the named fields that differs its value in the checkpoint and in the model."""
    known = known_fields(checkpoint, fields)
    different = {}
    for name in names:
        if name not in known or not hasattr(fields, name):
            continue
        theirs, ours = known[name], getattr(fields, name)
        if name == "mlp_ratio" and isinstance(fields, TransformerFields):
            ours = fields.mlp_dim / fields.embed_dim  # what the ratio became, in whole channels
        if name == "head_hidden_dim" and not fields.num_classes:
            ours = 0  # no head, and no layer before it
        same = math.isclose(theirs, ours) if isinstance(theirs, float) and isinstance(ours, float) else theirs == ours
        if not same:
            different[name] = theirs, ours
    return different


def refuse_differences(
    checkpoint: Checkpoint, model_name: str, different: Mapping[str, tuple[Any, Any]], advice: str
) -> NoReturn:
    """Raises UserError with the fields that differ, and the advice."""
    values = ", ".join(
        f"{name} is {theirs!r} in the file and {ours!r} in the model" for name, (theirs, ours) in different.items()
    )
    raise UserError(f"{checkpoint.path} ({checkpoint.family}) does not fit {model_name}: {values}; {advice}")


def architectures_like(checkpoint: Checkpoint) -> list[str]:
    """Lists the architectures that have the sizes of a checkpoint; if none has its image size, of any."""
    if not {"embed_dim", "depth"} <= checkpoint.fields.keys():
        return []
    of_its_kind = {name: fields for name, fields in ARCHITECTURES.items() if type(fields) is checkpoint.models}
    for names in (NAMED_FIELDS, [name for name in NAMED_FIELDS if name not in SIZE_FIELDS]):
        alike = [name for name, fields in of_its_kind.items() if not differing_fields(checkpoint, fields, names)]
        if alike:
            return alike
    return []


def size_advice(checkpoint: Checkpoint, model_name: str, different: Mapping[str, tuple[Any, Any]]) -> str:
    """Says which architectures have the checkpoint's sizes, or else which fields would give them."""
    alike = [name for name in architectures_like(checkpoint) if name != model_name]
    if alike and different.keys() & set(NAMED_FIELDS):
        return f"its sizes are those of {', '.join(alike)}"
    fields = {name: theirs for name, (theirs, _) in different.items() if name not in _DERIVED}
    return "build the model with " + ", ".join(f"{name}={theirs!r}" for name, theirs in fields.items())


def image_size_advice(different: Mapping[str, tuple[Any, Any]], fields: ModelFields) -> str:
    """Says what to give where only the image size, or the grid of tokens that follows from it, differs."""
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
