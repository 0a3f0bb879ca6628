"""What is said when training stops before a bad update."""

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
    """A loss or gradient that is NaN or infinite; the weights are those before the step.

    Attributes:
        step: the step that was not done, counted from 1.
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
    write_down: Callable[[dict[str, Any]], object] = lambda record: None,
) -> NonFiniteError:
    """Makes the error for a loss or gradient norm that is not finite, found before the optimizer's step.

    Args:
        loss: scalar.
        gradient_norm: scalar, of all gradients together.
        step: the coming optimizer step, counted from 1.
        epoch: counted from 1.
        indices: the images that it came from; [] if unknown.
        file_of: names the file of an image, or None if it has none.
        write_down: keeps the full record of the failure and returns the file that it is in, or None. The record holds
            ``step``, ``epoch``, ``loss``, ``gradient_norm`` (a number, or ``"nan"``, ``"inf"``, ``"-inf"``),
            ``indices`` of the batch's images in the training split and their ``files`` ([] if it is not made of files).

    Returns:
        The error, which names the step and the images, with their files where the data set knows them.
    """
    values = f"loss {loss.item():g}, gradient norm {gradient_norm.item():g}"
    images = f" on images {_shorten(indices)} of the train split" if indices else ""
    files = [file for file in map(file_of, indices) if file is not None]
    named = f" ({_shorten(files)})" if files else ""
    record = {"step": step, "epoch": epoch, "loss": _plain(loss), "gradient_norm": _plain(gradient_norm)}
    kept = write_down({**record, "indices": list(indices), "files": files})
    listed = f" {kept} lists the whole batch." if kept is not None and indices else ""
    return NonFiniteError(
        f"not finite at step {step}, epoch {epoch}: {values}{images}{named}. Training stopped before the update: "
        f"no weight has changed.{listed} Look at the images, or try a lower optim.lr, optim.clip_grad=1.0, "
        "train.precision=fp32",
        step,
        indices,
    )


def batch_indices(loader: DataLoader[Any], batch: int) -> list[int]:
    """Returns which images make up a batch of a loader whose order is a pure function; [] if it cannot tell.

    A repetition of an image (see ``EpochBatchSampler``) is that image, and one that was bad is what was read instead.
    """
    if loader.batch_sampler is None:
        return []
    image_of = loader.image_of if isinstance(loader, ImageLoader) else int
    return [image_of(sample) for sample in next(islice(iter(loader.batch_sampler), batch, None), [])]


def _plain(value: Tensor) -> float | str:
    """A number as JSON can hold it."""
    number = float(value.detach())
    return number if math.isfinite(number) else str(number)


def _shorten(items: Sequence[Any]) -> str:
    listed = ", ".join(str(item) for item in items[:_LISTED])
    return listed + (f" and {len(items) - _LISTED} more" if len(items) > _LISTED else "")
