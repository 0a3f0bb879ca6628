"""What early exit needs of a model."""

from __future__ import annotations

import itertools
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from vitfast.errors import UserError
from vitfast.models.exit_state import ExitState


class ExitModel(Protocol):
    """A model with exits that can be run one at a time, as ``vitfast.models.DVT``.

    Attributes:
        num_exits: how many there are, at least 2.
        exits: what each of them computes beyond the one before.
        num_classes: outputs of each exit, at least 1.
        in_chans: channels of an image.
        img_size: height and width of an image in pixels.
    """

    num_exits: int
    exits: nn.ModuleList

    @property
    def num_classes(self) -> int: ...  # noqa: D102

    @property
    def in_chans(self) -> int: ...  # noqa: D102

    @property
    def img_size(self) -> int: ...  # noqa: D102

    def start(self, images: Tensor) -> ExitState:
        """Begins with the first exit on ``images`` ``[B, in_chans, img_size, img_size]``."""

    def advance(self, state: ExitState) -> tuple[Tensor, ExitState]:
        """Runs the next exit: its logits ``[B, num_classes]`` and the state before the exit after it."""


def as_exit_model(model: nn.Module) -> ExitModel:
    """Returns the model itself, if it has what early exit needs.

    Raises:
        UserError: the model has no exits, or no heads.
    """
    name = getattr(model, "model_name", type(model).__name__)
    if getattr(model, "num_exits", 1) < 2 or not hasattr(model, "start") or not hasattr(model, "advance"):
        raise UserError(f"{name} has no exits to leave at; use a model that has: vitfast.list_models('dvt*')")
    if cast(Any, model).num_classes < 1:
        raise UserError(f"{name} has no heads (num_classes=0), so no exit can be confident; give num_classes")
    return cast(ExitModel, model)


def device_of(model: ExitModel) -> torch.device:
    """Where the model's weights lie; those of an accelerated one are buffers."""
    module = cast(nn.Module, model)
    return next(itertools.chain(module.parameters(), module.buffers())).device


def synchronize(device: torch.device) -> None:
    """Waits until a GPU has done all it was given, so that a clock read afterwards tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
