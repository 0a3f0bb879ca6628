"""One option of the command line: a dataclass field that knows its meaning and which values it allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Limits:
    """Which values an option allows; bounds hold for every element of a list.

    Attributes:
        choices: the only allowed values.
        minimum: smallest allowed value.
        above: the value must be strictly greater.
        maximum: largest allowed value.
        below: the value must be strictly less.
        length: how many elements a list must have; several lengths may be allowed.
    """

    choices: tuple[Any, ...] = ()
    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    below: float | None = None
    length: tuple[int, ...] = ()

    def describe(self) -> str:
        """Says in words what is allowed, e.g. ``">= 0, < 1"`` or ``"one of: fp32, bf16"``."""
        if self.choices:
            return "one of: " + ", ".join(str(choice) for choice in self.choices)
        signs = ((">=", self.minimum), (">", self.above), ("<=", self.maximum), ("<", self.below))
        bounds = ", ".join(f"{sign} {bound}" for sign, bound in signs if bound is not None)
        if not self.length:
            return bounds
        count = " or ".join(str(length) for length in self.length)
        return f"{count} values" + (f", each {bounds}" if bounds else "")

    def allows(self, value: Any) -> bool:
        """Whether ``value`` is within the limits; None always is, since the field's type decides about it."""
        if value is None:
            return True
        if isinstance(value, (list, tuple)):
            return (not self.length or len(value) in self.length) and all(self._allows_one(one) for one in value)
        return self._allows_one(value)

    def _allows_one(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        if isinstance(value, float) and not math.isfinite(value):
            return False
        return (
            (self.minimum is None or value >= self.minimum)
            and (self.above is None or value > self.above)
            and (self.maximum is None or value <= self.maximum)
            and (self.below is None or value < self.below)
        )


def option(
    default: Any = MISSING,
    help: str = "",
    *,
    default_factory: Callable[[], Any] | Any = MISSING,
    choices: Sequence[Any] = (),
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
    length: Sequence[int] = (),
) -> Any:
    """Declares a dataclass field that the command line can set.

    Args:
        default: value when nothing is given; without one (and without ``default_factory``) the option is required.
        help: what the option means, in one line, with its unit.
        default_factory: makes the default of a list, a dict or a nested dataclass.
        choices: the only allowed values.
        minimum: smallest allowed value (``above``: exclusive).
        above: the value must be strictly greater.
        maximum: largest allowed value (``below``: exclusive).
        below: the value must be strictly less.
        length: allowed numbers of elements of a list.

    Returns:
        The field, to stand on the right-hand side of a dataclass attribute.
    """
    limits = Limits(tuple(choices), minimum, above, maximum, below, tuple(length))
    metadata = {"help": help, "limits": limits}
    if default_factory is not MISSING:
        return field(default_factory=default_factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def limits_of(option_field: Field[Any]) -> Limits:
    """The limits of a dataclass field; a field made without ``option`` has none."""
    limits: Limits = option_field.metadata.get("limits", Limits())
    return limits
