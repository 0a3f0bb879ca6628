"""Command-line options: dataclass fields with a help text and limits."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import operator
import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from vitfast.errors import UserError

# type -> (name in --help, expected value in an error)
_TYPE_NAMES: dict[Any, tuple[str, str]] = {
    int: ("int", "a whole number"),
    float: ("float", "a number"),
    bool: ("bool", "true or false"),
    str: ("text", "text"),
    list[int]: ("[int, …]", "a list of whole numbers such as [1,2]"),
    list[float]: ("[float, …]", "a list of numbers such as [0.5,0.9]"),
    list[str]: ("[text, …]", "a list of texts such as [a,b]"),
    dict[str, Any]: ("{key: value}", "a mapping such as {key: value}"),
}


@dataclass(frozen=True)
class Limits:
    """The values that an option allows; bounds apply to every element of a list.

    Attributes:
        choices: the only allowed values.
        minimum: inclusive lower bound.
        above: exclusive lower bound.
        maximum: inclusive upper bound.
        below: exclusive upper bound.
        length: allowed numbers of elements of a list.
    """

    choices: Sequence[Any] = ()
    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    below: float | None = None
    length: Sequence[int] = ()

    def describe(self) -> str:
        """Describes the allowed values, e.g. ``">= 0, < 1"`` or ``"one of: fp32, bf16"``."""
        if self.choices:
            return "one of: " + ", ".join(map(str, self.choices))
        bounds = ", ".join(f"{sign} {bound}" for sign, _, bound in self._bounds())
        if not self.length:
            return bounds
        return f"{' or '.join(map(str, self.length))} values" + (f", each {bounds}" if bounds else "")

    def allows(self, value: Any) -> bool:
        """Whether ``value`` is within the limits; None always is, because the field's type decides about it."""
        if isinstance(value, (list, tuple)):
            return (not self.length or len(value) in self.length) and all(map(self.allows, value))
        if value is None or self.choices:
            return value is None or value in self.choices
        if isinstance(value, float) and not math.isfinite(value):
            return False
        return all(compare(value, bound) for _, compare, bound in self._bounds())

    def _bounds(self) -> list[tuple[str, Callable[[Any, Any], bool], float]]:
        bounds = (
            (">=", operator.ge, self.minimum),
            (">", operator.gt, self.above),
            ("<=", operator.le, self.maximum),
            ("<", operator.lt, self.below),
        )
        return [(sign, compare, bound) for sign, compare, bound in bounds if bound is not None]


def option(default: Any = MISSING, help: str = "", **limits: Any) -> Any:
    """Declares a dataclass field that the command line can set.

    Args:
        default: value if the option is not given, copied if it is a list or a dict; without it the option is required.
        help: one line of description, with the unit.
        **limits: attributes of ``Limits``.

    Returns:
        The dataclass field.
    """
    metadata = {"help": help, "limits": Limits(**limits)}
    if isinstance(default, (list, dict)):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class OptionInfo:
    """An option as the command line sees it.

    Attributes:
        key: dotted key, e.g. ``optim.lr``.
        value_type: its type without the ``| None``.
        optional: whether null is allowed.
        default: the default; ``MISSING`` if the option is required.
        help: its description.
        limits: the allowed values.
        section: the dataclass that declares it.
    """

    key: str
    value_type: Any
    optional: bool
    default: Any
    help: str
    limits: Limits
    section: type

    @property
    def required(self) -> bool:
        """Whether the option has no default."""
        return self.default is MISSING

    def type_name(self, *, in_error: bool = False) -> str:
        """The type as ``--help`` or an error describes it."""
        names = _TYPE_NAMES.get(self.value_type)
        return (names[in_error] if names else str(self.value_type)) + (" or null" if self.optional else "")


_type_hints = functools.cache(get_type_hints)  # a command asks for those of each section several times


def list_options(schema: type, prefix: str = "") -> dict[str, OptionInfo]:
    """Lists the options of a dataclass and of nested ones: required options first, inherited ones last."""
    options: dict[str, OptionInfo] = {}
    hints = _type_hints(schema)
    ancestry = {name: depth for depth, base in enumerate(schema.__mro__) for name in inspect.get_annotations(base)}
    required = {one.name for one in fields(schema) if one.default is MISSING and one.default_factory is MISSING}
    for one in sorted(fields(schema), key=lambda one: -1 if one.name in required else ancestry[one.name]):
        key, hint = prefix + one.name, hints[one.name]
        if is_dataclass(hint):
            assert isinstance(hint, type)
            options |= list_options(hint, key + ".")
            continue
        default = one.default_factory() if one.default_factory is not MISSING else one.default
        value_type, optional = _without_none(hint)
        limits = one.metadata.get("limits", Limits())
        meaning = one.metadata.get("help", "")
        options[key] = OptionInfo(key, value_type, optional, default, meaning, limits, section=schema)
    return options


def find_option(options: dict[str, OptionInfo], key: str) -> OptionInfo | None:
    """Returns the option that a key sets: the option itself, or the mapping option above it; None if unknown."""
    name = key
    while name not in options and "." in name:
        name = name.rpartition(".")[0]
    info = options.get(name)
    return info if info is not None and (name == key or get_origin(info.value_type) is dict) else None


def nearest_names(name: str, known: Iterable[str]) -> list[str]:
    """Returns the up to three known dotted names most similar to ``name``, best first; at least one if any is known.

    Names are compared as a whole and by their last part, so that ``lr`` finds ``optim.lr``.
    """

    def similarity(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, name, candidate).ratio()
        last = difflib.SequenceMatcher(None, name.rpartition(".")[2], candidate.rpartition(".")[2]).ratio()
        return max(whole, last)

    ranked = sorted(known, key=similarity, reverse=True)
    return [candidate for candidate in ranked[:3] if similarity(candidate) >= similarity(ranked[0]) - 0.05]


def option_values(options: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the values of options, including those of nested dataclasses: dotted key -> value."""
    values: dict[str, Any] = {}
    for one in fields(options):
        value, key = getattr(options, one.name), prefix + one.name
        values |= option_values(value, f"{key}.") if is_dataclass(value) else {key: value}
    return values


def check_limits(options: Any, prefix: str = "") -> None:
    """Raises UserError for the first value outside the limits that its dataclass declares."""
    known = list_options(type(options), prefix)
    for key, value in option_values(options, prefix).items():
        limits, meaning = known[key].limits, known[key].help
        if not limits.allows(value):
            near = difflib.get_close_matches(str(value), map(str, limits.choices), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            allowed = limits.describe() or "a finite number"
            raise UserError(
                f"{key}={format_value(value)} is not allowed; allowed: {allowed}{hint}"
                + (f" ({meaning})" if meaning else "")
            )


def check_options(options: Any, prefix: str = "") -> None:
    """Raises UserError for a value outside its limits, or for options that contradict each other."""
    check_limits(options, prefix)
    if hasattr(options, "check"):
        options.check(prefix)
    for one in fields(options):
        if is_dataclass(getattr(options, one.name)):
            check_options(getattr(options, one.name), f"{prefix}{one.name}.")


def format_value(value: Any) -> str:
    """Formats a value as on the command line: ``null``, ``true``, ``0.001``, ``[0.9, 0.999]``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(format_value, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {format_value(entry)}" for key, entry in value.items()) + "}"
    return str(value)


def _without_none(hint: Any) -> tuple[Any, bool]:
    """Splits ``X | None`` into (X, True); any other type is (type, False)."""
    if get_origin(hint) not in (Union, types.UnionType):
        return hint, False
    members = [member for member in get_args(hint) if member is not type(None)]
    return (members[0] if len(members) == 1 else hint), len(members) < len(get_args(hint))
