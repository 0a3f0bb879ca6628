"""A value of an option, as one would type it."""

from __future__ import annotations

from typing import Any


def format_value(value: Any) -> str:
    """Writes a value as it stands on the command line: ``null``, ``true``, ``0.001``, ``[0.9, 0.999]``."""
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
