"""Checks of model fields, with messages that name the field."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vitfast.errors import UserError


def check_field_type(owner: type, name: str, value: Any) -> None:
    """Checks a value against its annotation in ``owner``.

    Annotations may be int, float (an int will do), bool, str, a Literal of words and ``tuple[int, ...]``.

    Raises:
        UserError: it has another type, or is none of the words.
    """
    hint = get_type_hints(owner)[name]
    if get_origin(hint) is Literal:
        check_field(value in get_args(hint), name, value, f"must be one of {', '.join(map(repr, get_args(hint)))}")
    elif hint is bool:
        check_field(isinstance(value, bool), name, value, "must be True or False")
    elif hint is int:
        check_field(isinstance(value, int) and not isinstance(value, bool), name, value, "must be a whole number")
    elif get_origin(hint) is tuple:
        are_whole = isinstance(value, tuple) and all(type(part) is int for part in value)
        check_field(are_whole, name, value, "must be a list of whole numbers")
    elif hint is str:
        check_field(isinstance(value, str), name, value, "must be a text")
    else:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        check_field(is_number and math.isfinite(value), name, value, "must be a finite number")


def check_field(holds: bool, name: str, value: Any, rule: str) -> None:
    """Raises UserError with the field's name, the rule and the value unless the rule ``holds``."""
    if not holds:
        raise UserError(f"{name} {rule}; got {value!r}")
