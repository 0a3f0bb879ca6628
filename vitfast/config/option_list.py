"""What a dataclass offers on the command line: its options by dotted key."""

from __future__ import annotations

import difflib
import inspect
import types
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from vitfast.config.option import Limits, limits_of

# type -> (name in --help, what an error says was expected)
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
class OptionInfo:
    """One option.

    Attributes:
        key: dotted key, e.g. ``optim.lr``.
        value_type: its type without the ``| None``.
        optional: whether null is allowed.
        default: what it is when nothing sets it; ``MISSING`` if it is required.
        help: its meaning.
        limits: the allowed values.
    """

    key: str
    value_type: Any
    optional: bool
    default: Any
    help: str
    limits: Limits

    @property
    def required(self) -> bool:
        """Whether the option has no default."""
        return self.default is MISSING

    @property
    def is_mapping(self) -> bool:
        """Whether any key may follow below this one."""
        return get_origin(self.value_type) is dict

    def type_name(self) -> str:
        """The type as ``--help`` shows it."""
        return self._describe(0) + (" or null" if self.optional else "")

    def expected(self) -> str:
        """The type as an error describes it."""
        return self._describe(1) + (" or null" if self.optional else "")

    def _describe(self, index: int) -> str:
        names = _TYPE_NAMES.get(self.value_type)
        return names[index] if names else str(self.value_type)


def list_options(schema: type, prefix: str = "") -> dict[str, OptionInfo]:
    """Lists the options of a dataclass and of the dataclasses nested in it, its own before those that it inherits.

    Args:
        schema: the dataclass.
        prefix: what stands before each key, with its dot.

    Returns:
        Dotted key -> option.
    """
    options: dict[str, OptionInfo] = {}
    hints = get_type_hints(schema)
    ancestry = {name: depth for depth, base in enumerate(schema.__mro__) for name in inspect.get_annotations(base)}
    for one in sorted(fields(schema), key=lambda one: ancestry[one.name]):
        key, hint = prefix + one.name, hints[one.name]
        if is_dataclass(hint):
            assert isinstance(hint, type)
            options |= list_options(hint, key + ".")
            continue
        default = one.default_factory() if one.default_factory is not MISSING else one.default
        value_type, optional = _without_none(hint)
        options[key] = OptionInfo(key, value_type, optional, default, one.metadata.get("help", ""), limits_of(one))
    return options


def list_sections(schema: type, prefix: str = "") -> dict[str, type]:
    """Lists the dataclasses nested in a dataclass: dotted key -> class."""
    sections: dict[str, type] = {}
    for name, hint in get_type_hints(schema).items():
        if is_dataclass(hint) and isinstance(hint, type):
            sections[prefix + name] = hint
            sections |= list_sections(hint, f"{prefix}{name}.")
    return sections


def find_option(options: dict[str, OptionInfo], key: str) -> OptionInfo | None:
    """The option that a key sets: the one of that name, or the mapping it lies in; None for an unknown key."""
    if key in options:
        return options[key]
    parents = key.split(".")[:-1]
    while parents:
        info = options.get(".".join(parents))
        if info is not None:
            return info if info.is_mapping else None
        parents.pop()
    return None


def nearest_names(name: str, known: Iterable[str]) -> list[str]:
    """The known dotted names most like ``name``, best first: at most three, at least one if any is known.

    A name counts as near if it is near as a whole or in its last part, so that ``lr`` finds ``optim.lr``.
    """

    def similarity(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, name, candidate).ratio()
        last = difflib.SequenceMatcher(None, name.rpartition(".")[2], candidate.rpartition(".")[2]).ratio()
        return max(whole, last)

    ranked = sorted(known, key=similarity, reverse=True)
    return [candidate for candidate in ranked[:3] if similarity(candidate) >= similarity(ranked[0]) - 0.05]


def _without_none(hint: Any) -> tuple[Any, bool]:
    """Splits ``X | None`` into (X, True); any other type is (type, False)."""
    if get_origin(hint) not in (Union, types.UnionType):
        return hint, False
    members = [member for member in get_args(hint) if member is not type(None)]
    return (members[0] if len(members) == 1 else hint), len(members) < len(get_args(hint))
