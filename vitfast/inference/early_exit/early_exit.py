"""Inference that stops, for each image, at the first exit that is confident enough."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vitfast.errors import UserError
from vitfast.models.saved_exits import SavedExits

# thresholds at which every image or no image leaves; finite, so that JSON can store them
ALWAYS, NEVER = 0.0, 2.0


class EarlyExit(nn.Module):
    """Runs a model with exits; an image leaves at the first exit whose top softmax probability reaches its threshold.

    After each exit the remaining images are gathered into a smaller batch, with the features and relations that later
    exits reuse. Exits that no image reaches are not run. The result equals that of running all exits and choosing
    afterwards, up to the rounding of GEMMs of another batch size.

    The host synchronizes with the device once per exit to read the number of remaining images.

    Args:
        model: a model with exits, such as ``create_model("dvt_t2t_vit_12")``. It is put into evaluation mode and
            shared, not copied.
        thresholds: one number per exit, from ``calibrate_exits``. At ``-inf`` (or 0) all images leave, at ``inf`` (or
            above 1) none; the last threshold is ignored. None takes the thresholds of the model's checkpoint, see
            ``SavedExits``.

    Raises:
        UserError: the model has no exits, the thresholds do not fit it, or its checkpoint has none or several sets.
    """

    def __init__(self, model: nn.Module, thresholds: Sequence[float] | None = None) -> None:
        super().__init__()
        self._num_exits = as_exit_model(model).num_exits
        if thresholds is None:
            saved: SavedExits | None = getattr(model, "saved_exits", None)
            if saved is None:
                raise UserError(
                    "thresholds is not given, and none came with the model's weights; "
                    "vitfast.calibrate_exits(model, loader, budget_gmacs=…) finds them"
                )
            thresholds = saved.only()
        self.thresholds = check_thresholds(thresholds, self._num_exits)
        self.model = model
        self.eval()

    def train(self, mode: bool = True) -> EarlyExit:
        """Refuses training mode.

        Raises:
            UserError: ``mode`` is True.
        """
        if mode:
            raise UserError("EarlyExit supports inference only; train the wrapped model, which trains all exits")
        return super().train(False)

    def extra_repr(self) -> str:
        return f"thresholds={list(self.thresholds)}"

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Classifies images.

        Args:
            images: ``[B, in_chans, img_size, img_size]``; B may be 0.

        Returns:
            For each image, in input order: the logits ``[B, num_classes]`` of the exit at which it left, and the index
            of that exit, from 0, ``[B]`` in int64.

        Raises:
            TypeError: the images are not floating point.
            ValueError: the images have another shape, or the model has been put into training mode.
        """
        if self.model.training:
            raise UserError("the model of this EarlyExit is in training mode; call .eval() on it first")
        model = as_exit_model(self.model)
        state = model.start(images)
        remaining = torch.arange(images.shape[0], device=images.device)  # positions in the batch
        logits_by_exit: list[Tensor] = []
        positions_by_exit: list[Tensor] = []
        for index, threshold in enumerate(self.thresholds):
            logits, state = model.advance(state)
            count = len(remaining)
            if index < self._num_exits - 1:
                leaves = confidence_of(logits) >= threshold
                # stable: leaving images first, in input order; the host only needs their number
                order = leaves.byte().argsort(descending=True, stable=True)
                count = int(leaves.sum())
            if count == len(remaining):
                logits_by_exit.append(logits)
                positions_by_exit.append(remaining)
                break
            logits_by_exit.append(logits[order[:count]])
            positions_by_exit.append(remaining[order[:count]])
            if count:
                state, remaining = state.select(order[count:]), remaining[order[count:]]
        exits = torch.cat([torch.full_like(part, index) for index, part in enumerate(positions_by_exit)])
        positions, logits = torch.cat(positions_by_exit), torch.cat(logits_by_exit)
        return (
            torch.empty_like(logits).index_copy_(0, positions, logits),
            torch.empty_like(exits).index_copy_(0, positions, exits),
        )


def as_exit_model(model: nn.Module) -> Any:
    """Returns a model whose exits can be run one at a time by ``start`` and ``advance``, as ``vitfast.models.DVT``.

    Raises:
        UserError: the model has no exits, or no classification heads.
    """
    exits: Any = model
    name = getattr(model, "model_name", type(model).__name__)
    if getattr(model, "num_exits", 1) < 2 or not hasattr(model, "start") or not hasattr(model, "advance"):
        raise UserError(f"{name} has no exits to leave at; use a model with exits: vitfast.list_models('dvt*')")
    if exits.num_classes < 1:
        raise UserError(f"{name} has no heads (num_classes=0), so no exit can be confident; give num_classes")
    return exits


def device_of(model: nn.Module) -> torch.device:
    """Returns the device of a model; the weights of an accelerated model are buffers."""
    return next(itertools.chain(model.parameters(), model.buffers())).device


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Puts a model into evaluation mode within the context."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def confidence_of(logits: Tensor) -> Tensor:
    """Returns the top softmax probability, ``[B]`` in float32, of logits ``[B, K]``."""
    return logits.float().softmax(dim=1).amax(dim=1)


def check_thresholds(thresholds: Sequence[float], num_exits: int) -> tuple[float, ...]:
    """Returns thresholds as floats; -inf and inf are allowed.

    Raises:
        UserError: an entry is not a number, or there is not one per exit.
    """
    hint = "vitfast.calibrate_exits(model, loader, budget_gmacs=…) finds them"
    try:
        numbers = tuple(float(threshold) for threshold in thresholds)
    except (TypeError, ValueError) as error:
        raise UserError(f"thresholds={thresholds!r}; it must be a list of numbers, one per exit; {hint}") from error
    if len(numbers) != num_exits:
        raise UserError(
            f"thresholds has {len(numbers)} numbers, the model has {num_exits} exits; give one per exit (the last one "
            f"is ignored); {hint}"
        )
    if any(math.isnan(number) for number in numbers):
        raise UserError(f"thresholds={list(numbers)}; NaN is not a threshold; {hint}")
    return numbers
