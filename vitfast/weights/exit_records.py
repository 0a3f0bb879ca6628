"""Reads and writes the exit thresholds that files store, in the released DVTs' format and in vitfast's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vitfast.errors import UserError
from vitfast.models.saved_exits import SavedExits
from vitfast.weights.restricted_pickle import NumpyArray

# entries of a released file; the others, ``flops`` and ``anytime_classification``, only state results
RELEASED_THRESHOLDS, RELEASED_CURVE = "dynamic_threshold", "budgeted_batch_classification"

# Thresholds are clamped to the range that calibrate_exits writes; values below 0, or above 1, are all equivalent.
_ALWAYS, _NEVER = 0.0, 2.0
_MAX_CHOICES, _MAX_NUMBERS = 10_000, 1_000_000
_MAX_INTEGER = 1 << 53  # a pickle and JSON may hold integers of any size


def released_exits(entries: Mapping[str, Any]) -> SavedExits | None:
    """Reads the thresholds of a released DVT, with costs and accuracies, from the entries beside its weights; or None.

    Raises:
        UserError: they are not numbers, one per exit.
    """
    if RELEASED_THRESHOLDS not in entries:
        return None
    thresholds = _rows(entries[RELEASED_THRESHOLDS], RELEASED_THRESHOLDS)
    gmacs, percents = _curve(entries.get(RELEASED_CURVE), len(thresholds))
    return _saved_exits(thresholds, gmacs, tuple(percent / 100 for percent in percents), RELEASED_THRESHOLDS)


def recorded_exits(record: Mapping[str, Any]) -> SavedExits | None:
    """Reads the thresholds in a manifest or in the metadata of a safetensors file, None if there are none.

    Raises:
        UserError: they are not numbers, one per exit.
    """
    entry = "exit_thresholds"
    if record.get(entry) is None:
        return None
    saved = record[entry]
    if not isinstance(saved, dict):
        return _saved_exits(_rows(saved, entry), (), (), entry)
    costs = [_rows(saved.get(name) or [], f"{entry}.{name}") for name in ("gmacs", "accuracy")]
    gmacs, accuracy = (rows[0] if rows else () for rows in costs)
    return _saved_exits(_rows(saved.get("thresholds"), entry), gmacs, accuracy, entry)


def exits_record(exits: SavedExits) -> list[float] | dict[str, Any]:
    """Returns the entry that ``recorded_exits`` reads: a list for a single choice of thresholds without its cost."""
    if len(exits.thresholds) == 1 and not exits.gmacs:
        return list(exits.thresholds[0])
    return {"thresholds": exits.thresholds, "gmacs": exits.gmacs, "accuracy": exits.accuracy}


def _curve(value: Any, choices: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns costs and accuracies in percent; empty if there is not one of each per choice."""
    try:
        gmacs, percents = _rows(value, RELEASED_CURVE)
    except ValueError:
        return (), ()
    return (gmacs, percents) if len(gmacs) == len(percents) == choices else ((), ())


def _saved_exits(
    rows: tuple[tuple[float, ...], ...], gmacs: tuple[float, ...], accuracy: tuple[float, ...], entry: str
) -> SavedExits:
    if not rows or not rows[0] or len({len(row) for row in rows}) > 1:
        raise UserError(f"its {entry} has no rows of equal length, one number per exit; remove the entry")
    if any(numbers and len(numbers) != len(rows) for numbers in (gmacs, accuracy)):
        raise UserError(f"its {entry} has {len(rows)} choices, but another number of costs; remove the entry")
    clamped = tuple(tuple(min(max(number, _ALWAYS), _NEVER) for number in row) for row in rows)
    return SavedExits(clamped, gmacs, accuracy)


def _rows(value: Any, entry: str) -> tuple[tuple[float, ...], ...]:
    """Converts a tensor, an array or lists to rows of numbers; a one-dimensional value is a single row."""
    table, left = _list(value, _MAX_NUMBERS), _MAX_NUMBERS
    rows: list[Any] = []
    # a list may contain itself, or a long one many times: only two levels are read, and not too many numbers
    for part in table if isinstance(table, list) else [None]:
        rows.append(_list(part, left))
        left -= len(rows[-1]) if isinstance(rows[-1], list) else 1
    if rows and not isinstance(rows[0], list) and isinstance(table, list):
        rows = [rows]
    if len(rows) > _MAX_CHOICES or left < 0 or not all(isinstance(row, list) for row in rows):
        raise UserError(f"its {entry} is not a table of numbers; remove the entry")
    if not all(_is_number(number) for row in rows for number in row):
        raise UserError(f"its {entry} holds NaN or values that are not numbers; remove the entry")
    return tuple(tuple(float(number) for number in row) for row in rows)


def _is_number(value: Any) -> bool:
    return (type(value) is float and not math.isnan(value)) or (type(value) is int and abs(value) < _MAX_INTEGER)


def _list(value: Any, limit: int) -> Any:
    """Returns the rows or numbers of a list, tuple, array or tensor as a list; another value unchanged."""
    if isinstance(value, NumpyArray):
        value = value.tensor
    if isinstance(value, Tensor):
        is_plain = value.layout == torch.strided and value.device.type == "cpu"
        value = value.tolist() if is_plain and math.prod(max(size, 1) for size in value.shape) <= limit else None
    return list(value[: max(limit, 0) + 1]) if isinstance(value, (list, tuple)) else value
