"""``LoadReport``: what was loaded into a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vitfast.models.saved_exits import SavedExits

_LISTED_KEYS = 20


@dataclass(frozen=True)
class LoadReport:
    """What was loaded into a model, and what was not; ``print`` it to read it.

    Attributes:
        source: the file or folder that was read.
        model_name: name of the model that was filled.
        family: the checkpoint's format, ``"Google"`` for example.
        fields: the model fields that ``create_model`` took from the file or its format.
        assumed: fields that change what the model computes and that neither the file nor its format tells, with the
            model's values.
        loaded: keys of the model that were loaded, including the resized ones.
        missing: keys of the model that the file lacks; they keep their values.
        unexpected: keys of the file that the model does not have.
        mismatched: keys with different shapes in file and model, with both shapes; they keep their values.
        resized: keys that were resampled for another image size.
        position_interpolation: how they were resampled, None if nothing was.
        skipped: what is intentionally not loaded: layers that no model has and entries that are no weights, under
            the file's names; a head that cannot be used, under the model's.
        fresh: keys of the heads that stay newly initialized.
        exits: the thresholds of exits in the file, None if there were none.
    """

    source: str
    model_name: str
    family: str = "vitfast"
    fields: Mapping[str, Any] = field(default_factory=dict)
    assumed: Mapping[str, Any] = field(default_factory=dict)
    loaded: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()
    position_interpolation: str | None = None
    skipped: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    exits: SavedExits | None = None

    def __str__(self) -> str:
        lines = [f"{self.model_name}: {len(self.loaded)} tensors loaded from {self.source} ({self.family})"]
        for title, fields in (
            ("from the file and its format", self.fields),
            ("not in the file, assumed", self.assumed),
        ):
            if fields:
                values = ", ".join(f"{name}={value!r}" for name, value in sorted(fields.items()))
                lines.append(f"  fields {title}: {values}")
        if self.exits is not None:
            lines.append(f"  exit thresholds: {self.exits}")
        how = f" ({self.position_interpolation})" if self.position_interpolation else ""
        for title, keys in (
            (f"resized{how}", self.resized),
            ("newly initialized", self.fresh),
            ("skipped", self.skipped),
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("other shape", self.mismatched),
        ):
            if keys:
                lines.append(f"  {title}: {list_keys(keys)}")
        return "\n".join(lines)


def list_keys(keys: Sequence[str]) -> str:
    """Joins at most ``_LISTED_KEYS`` keys for a message."""
    more = len(keys) - _LISTED_KEYS
    return ", ".join(keys[:_LISTED_KEYS]) + (f" and {more} more" if more > 0 else "")
