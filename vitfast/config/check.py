"""Whether the values of a configuration are allowed."""

from __future__ import annotations

import difflib
from dataclasses import fields, is_dataclass
from typing import Any

from vitfast.config.format_value import format_value
from vitfast.config.option import limits_of
from vitfast.errors import UserError


def check_limits(options: Any, prefix: str = "") -> None:
    """Raises UserError for the first value that is outside the limits its dataclass declares.

    Args:
        options: the dataclass instance; nested ones are checked too.
        prefix: what stands before each key in the message, with its dot.
    """
    for one in fields(options):
        value, key, limits = getattr(options, one.name), prefix + one.name, limits_of(one)
        if is_dataclass(value):
            check_limits(value, key + ".")
        elif not limits.allows(value):
            near = difflib.get_close_matches(str(value), map(str, limits.choices), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            meaning = one.metadata.get("help")
            allowed = limits.describe() or "a finite number"
            raise UserError(
                f"{key}={format_value(value)} is not allowed; allowed: {allowed}{hint}"
                + (f" ({meaning})" if meaning else "")
            )


def check_options(options: Any, prefix: str = "") -> None:
    """Raises UserError for a value outside its limits, or for options that contradict each other.

    Args:
        options: the dataclass instance; the ``check(prefix)`` methods of it and of nested ones are called too.
        prefix: what stands before each key in the message, with its dot.
    """
    check_limits(options, prefix)
    _check_agreement(options, prefix)


def _check_agreement(options: Any, prefix: str) -> None:
    if hasattr(options, "check"):
        options.check(prefix)
    for one in fields(options):
        value = getattr(options, one.name)
        if is_dataclass(value):
            _check_agreement(value, f"{prefix}{one.name}.")
