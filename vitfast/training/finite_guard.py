"""The error that stops training before an update with a non-finite loss or gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from vitfast.data import ImageLoader
from vitfast.errors import UserError

_LISTED = 8


class NonFiniteError(UserError):
    """A NaN or infinite loss or gradient; the weights are those before the step.

    Attributes:
        step: the step that was not made, counted from 1.
        indices: of the batch's images in the training split; empty if unknown.
    """

    def __init__(self, message: str, step: int, indices: Sequence[int]) -> None:
        super().__init__(message)
        self.step = step
        self.indices = list(indices)


def not_finite(
    loss: Tensor,
    gradient_norm: Tensor,
    *,
    step: int,
    epoch: int,
    indices: Sequence[int],
    file_of: Callable[[int], str | None] = lambda index: None,
    write_record: Callable[[dict[str, Any]], object] = lambda record: None,
) -> NonFiniteError:
    """Creates the error for a non-finite loss or gradient norm.

    Args:
        loss: scalar.
        gradient_norm: scalar, of all gradients together.
        step: the next optimizer step, counted from 1 like ``epoch``.
        epoch: the running epoch.
        indices: of the batch's images; [] if unknown.
        file_of: returns the file of an image, or None.
        write_record: saves the full record and returns its file, or None. The record contains ``step``, ``epoch``,
            ``loss``, ``gradient_norm`` (a number, or ``"nan"``, ``"inf"``, ``"-inf"``), and the ``indices`` and
            ``files`` of the batch's images ([] if images have no files).

    Returns:
        The error, whose message gives the step, the images and their files.
    """
    values = f"loss {loss.item():g}, gradient norm {gradient_norm.item():g}"
    images = f" on images {_shorten(indices)} of the train split" if indices else ""
    files = [file for file in map(file_of, indices) if file is not None]
    named = f" ({_shorten(files)})" if files else ""
    record = {"step": step, "epoch": epoch, "loss": _json_number(loss), "gradient_norm": _json_number(gradient_norm)}
    written = write_record({**record, "indices": list(indices), "files": files})
    listed = f" {written} lists the whole batch." if written is not None and indices else ""
    return NonFiniteError(
        f"not finite at step {step}, epoch {epoch}: {values}{images}{named}. Training stopped before the update: "
        f"no weight has changed.{listed} Check the images, or try a lower optim.lr, optim.clip_grad=1.0, "
        "train.precision=fp32",
        step,
        indices,
    )


def batch_indices(loader: DataLoader[Any], batch: int) -> list[int]:
    """Returns the image indices of a batch of a loader with a deterministic order; [] if they are unknown.

    A repetition is mapped to its image, and an unreadable image to its replacement, see ``EpochBatchSampler``.
    """
    if loader.batch_sampler is None:
        return []
    image_of = loader.image_of if isinstance(loader, ImageLoader) else int
    return [image_of(sample) for sample in next(islice(iter(loader.batch_sampler), batch, None), [])]


def _json_number(value: Tensor) -> float | str:
    number = float(value.detach())
    return number if math.isfinite(number) else str(number)


def _shorten(items: Sequence[Any]) -> str:
    listed = ", ".join(map(str, items[:_LISTED]))
    return listed + (f" and {len(items) - _LISTED} more" if len(items) > _LISTED else "")
