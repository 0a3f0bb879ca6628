"""Thresholds of exits as files hold them: the released Dynamic Vision Transformers' and vitfast's own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitfast.errors import UserError
from vitfast.models.saved_exits import SavedExits
from vitfast.weights.numpy_pickle import NumpyArray

# entries of a released file; the others, ``flops`` and ``anytime_classification``, only state results
RELEASED_THRESHOLDS, RELEASED_CURVE = "dynamic_threshold", "budgeted_batch_classification"

# thresholds below 0 and above 1 all mean the same; these are what calibrate_exits writes
_ALWAYS, _NEVER = 0.0, 2.0
_MAX_CHOICES = 10_000
_LARGE = 1 << 53  # whole numbers of any size are allowed in a pickle and in JSON


def released_exits(beside: Mapping[str, Any]) -> SavedExits | None:
    """Reads the thresholds of a released Dynamic Vision Transformer, and what they cost and reach.

    Args:
        beside: the entries beside the weights.

    Returns:
        None where there are none.

    Raises:
        UserError: they are no numbers, one an exit.
    """
    if RELEASED_THRESHOLDS not in beside:
        return None
    thresholds = _rows(beside[RELEASED_THRESHOLDS], RELEASED_THRESHOLDS)
    gmacs, percents = _curve(beside.get(RELEASED_CURVE), len(thresholds))
    return _saved_exits(thresholds, gmacs, tuple(percent / 100 for percent in percents), RELEASED_THRESHOLDS)


def own_exits(record: Mapping[str, Any], entry: str = "exit_thresholds") -> SavedExits | None:
    """Reads the thresholds in a manifest or in the metadata of a safetensors file, None where there are none.

    Raises:
        UserError: they are no numbers, one an exit.
    """
    if record.get(entry) is None:
        return None
    saved = record[entry]
    if not isinstance(saved, dict):
        return _saved_exits(_rows(saved, entry), (), (), entry)
    costs = [_rows(saved.get(name) or [], f"{entry}.{name}") for name in ("gmacs", "accuracy")]
    gmacs, accuracy = (rows[0] if rows else () for rows in costs)
    return _saved_exits(_rows(saved.get("thresholds"), entry), gmacs, accuracy, entry)


def exits_record(exits: SavedExits) -> list[float] | dict[str, Any]:
    """Returns what ``own_exits`` reads: a list of thresholds, or where there are several choices all of them."""
    if len(exits.thresholds) == 1 and not exits.gmacs:
        return list(exits.thresholds[0])
    return {"thresholds": exits.thresholds, "gmacs": exits.gmacs, "accuracy": exits.accuracy}


def _curve(value: Any, choices: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns costs and accuracies in percent, nothing where they are not those of these choices."""
    try:
        gmacs, percents = _rows(value, RELEASED_CURVE)
    except ValueError:
        return (), ()
    return (gmacs, percents) if len(gmacs) == len(percents) == choices else ((), ())


def _saved_exits(
    rows: tuple[tuple[float, ...], ...], gmacs: tuple[float, ...], accuracy: tuple[float, ...], entry: str
) -> SavedExits:
    if not rows or not rows[0] or len({len(row) for row in rows}) > 1:
        raise UserError(f"its {entry} has no rows of equal length, one number an exit; remove the entry")
    if any(numbers and len(numbers) != len(rows) for numbers in (gmacs, accuracy)):
        raise UserError(f"its {entry} has {len(rows)} choices, but costs or accuracies of others; remove the entry")
    clamped = tuple(tuple(min(max(number, _ALWAYS), _NEVER) for number in row) for row in rows)
    return SavedExits(clamped, gmacs, accuracy)


def _rows(value: Any, entry: str) -> tuple[tuple[float, ...], ...]:
    """Turns a tensor, an array or lists into rows of numbers; a single row stands for itself."""
    plain = _plain(value)
    if isinstance(plain, list) and plain and not isinstance(plain[0], list):
        plain = [plain]
    rows = plain if isinstance(plain, list) else None
    if rows is None or len(rows) > _MAX_CHOICES or not all(isinstance(row, list) for row in rows):
        raise UserError(f"its {entry} is no table of numbers; remove the entry")
    if not all(_is_number(number) for row in rows for number in row):
        raise UserError(f"its {entry} holds something else than numbers, or NaN; remove the entry")
    return tuple(tuple(float(number) for number in row) for row in rows)


def _is_number(value: Any) -> bool:
    return (type(value) is float and not math.isnan(value)) or (type(value) is int and abs(value) < _LARGE)


def _plain(value: Any) -> Any:
    if isinstance(value, NumpyArray):
        value = value.tensor
    if isinstance(value, Tensor):
        return value.tolist() if value.numel() <= 100 * _MAX_CHOICES else None
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value[: _MAX_CHOICES + 1]]
    return value
