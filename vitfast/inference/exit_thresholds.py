"""The thresholds at which images leave a model with exits: one number an exit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitfast.errors import UserError
from vitfast.models.saved_exits import SavedExits

# Finite, so that they can be written as JSON: no probability is below the one or reaches the other.
ALWAYS, NEVER = 0.0, 2.0


def check_thresholds(thresholds: Sequence[float], num_exits: int) -> tuple[float, ...]:
    """Returns thresholds as numbers, if they fit a model.

    Args:
        thresholds: one an exit; -inf and inf are allowed.
        num_exits: of the model.

    Raises:
        UserError: they are no numbers, or another count.
    """
    hint = "vitfast.calibrate_exits(model, loader, budget_gmacs=…) finds them"
    try:
        numbers = tuple(float(threshold) for threshold in thresholds)
    except (TypeError, ValueError) as error:
        raise UserError(f"thresholds={thresholds!r}; it must be a list of numbers, one an exit; {hint}") from error
    if len(numbers) != num_exits:
        raise UserError(
            f"thresholds has {len(numbers)} numbers, the model has {num_exits} exits; give one an exit (the last one "
            f"is not read); {hint}"
        )
    if any(math.isnan(number) for number in numbers):
        raise UserError(f"thresholds={list(numbers)}; NaN is no threshold; {hint}")
    return numbers


def saved_thresholds(model: nn.Module) -> list[float]:
    """Returns the thresholds that came with a model's checkpoint.

    Raises:
        UserError: there are none, or several to choose from.
    """
    saved: SavedExits | None = getattr(model, "saved_exits", None)
    if saved is None:
        raise UserError(
            "thresholds is not given, and none came with the model's weights; "
            "vitfast.calibrate_exits(model, loader, budget_gmacs=…) finds them"
        )
    return saved.only()


def confidence_of(logits: Tensor) -> Tensor:
    """The top softmax probability, ``[B]`` in float32, of logits ``[B, K]``."""
    return logits.float().softmax(dim=1).amax(dim=1)


def first_confident_exit(confidence: Tensor, thresholds: Sequence[float]) -> Tensor:
    """Tells where images leave: at the first exit whose confidence reaches its threshold, else at the last.

    Args:
        confidence: of every exit, ``[E, B]``, float32. NaN reaches no threshold.
        thresholds: E numbers; the last one is not read.

    Returns:
        The exits from 0, ``[B]``.
    """
    # rounded as a comparison with one number rounds it, so that early exit decides in the same way
    limits = torch.tensor(list(thresholds), dtype=confidence.dtype, device=confidence.device)
    leaves = confidence >= limits[:, None]
    leaves[-1] = True
    return leaves.int().argmax(dim=0)  # of equal values the first
