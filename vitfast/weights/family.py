"""What sets one system's checkpoints apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vitfast.models.image_model import ModelFields
from vitfast.models.saved_exits import SavedExits
from vitfast.models.vit_fields import ViTFields
from vitfast.weights.key_map import Rule

FieldReader = Callable[[Mapping[str, Tensor], Mapping[str, Any]], dict[str, Any]]
ExitReader = Callable[[Mapping[str, Any]], SavedExits | None]


@dataclass(frozen=True)
class Family:
    """One system's checkpoint format, as tables.

    Patterns are regular expressions that match a whole key of the file.

    Attributes:
        name: how reports and messages call it.
        signature: patterns, each of which some key of every such file matches.
        rules: its key map.
        fields: the model fields that this system always has, whatever the file.
        read_fields: reads further fields from the weights and a ``config.json`` beside them; None where there are none.
        read_exits: reads the thresholds of exits from the entries beside the weights; None where there are none.
        leftovers: patterns of what may lie beside the weights and is of no use here: skipped and reported.
        head_inputs: patterns of layers of a head that no model here has. They are skipped, and with them the rest of
            the head, which is worthless without them.
        foreign: pairs of a pattern and a description: a file with such a key is of a kind that is not supported.
        wrapper: the entry of the file that holds the weights, where that is what tells the family from another.
        models: the fields' class of the models that this family's weights fit.
    """

    name: str
    signature: tuple[str, ...]
    rules: tuple[Rule, ...]
    fields: Mapping[str, Any] = field(default_factory=dict)
    read_fields: FieldReader | None = None
    read_exits: ExitReader | None = None
    leftovers: tuple[str, ...] = ()
    head_inputs: tuple[str, ...] = ()
    foreign: tuple[tuple[str, str], ...] = ()
    wrapper: str | None = None
    models: type[ModelFields] = ViTFields
