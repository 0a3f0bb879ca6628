"""The fields that weights under our keys tell, for every kind of model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vitfast.models.convit_fields import ConViTFields
from vitfast.models.dvt_fields import DVTFields
from vitfast.models.hybrid_fields import HybridFields
from vitfast.models.image_model import ModelFields
from vitfast.models.t2t_vit_fields import T2TViTFields
from vitfast.models.vit_fields import ViTFields
from vitfast.weights.convit_state import convit_fields_of_state
from vitfast.weights.dvt_state import dvt_fields_of_state
from vitfast.weights.hybrid_state import hybrid_fields_of_state
from vitfast.weights.t2t_vit_state import t2t_vit_fields_of_state
from vitfast.weights.vit_state import fields_of_state


@dataclass(frozen=True)
class StateReader:
    """How the weights of one kind of model are read.

    Attributes:
        read: tells the fields.
        always: those that whole weights always tell, and that decide how large the model is.
    """

    read: Callable[[Mapping[str, Tensor]], dict[str, Any]]
    always: frozenset[str]


_READERS: dict[type[ModelFields], StateReader] = {
    ViTFields: StateReader(fields_of_state, frozenset({"embed_dim", "depth", "patch_size", "img_size"})),
    HybridFields: StateReader(
        hybrid_fields_of_state,
        frozenset({"embed_dim", "depth", "patch_size", "grid_size", "resnet_width", "resnet_layers"}),
    ),
    ConViTFields: StateReader(convit_fields_of_state, frozenset({"embed_dim", "depth", "patch_size", "img_size"})),
    T2TViTFields: StateReader(t2t_vit_fields_of_state, frozenset({"embed_dim", "depth", "patch_size", "grid_size"})),
    DVTFields: StateReader(
        dvt_fields_of_state, frozenset({"embed_dim", "depth", "num_exits", "patch_sizes", "grid_sizes"})
    ),
}


def state_fields(models: type[ModelFields] | None, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns the fields that weights tell of a model of this kind; nothing for a kind whose weights tell none."""
    reader = None if models is None else _READERS.get(models)
    return {} if reader is None else reader.read(state)


def untold_fields(models: type[ModelFields], state: Mapping[str, Tensor]) -> list[str]:
    """Lists the fields that whole weights would tell and these do not."""
    reader = _READERS.get(models)
    return [] if reader is None else sorted(reader.always - reader.read(state).keys())
