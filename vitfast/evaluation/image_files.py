"""Images given on the command line, read in batches."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vitfast.data import eval_transform
from vitfast.data.collection import StoredImage
from vitfast.errors import UserError
from vitfast.runs.trained_model import PREPROCESSING, TrainedModel


def read_batches(
    trained: TrainedModel, images: Sequence[StoredImage], batch_size: int, skipped: list[Path]
) -> Iterator[tuple[list[Path], Tensor]]:
    """Reads images with the preprocessing of a checkpoint.

    Args:
        trained: the model.
        images: from ``list_images``.
        batch_size: images in a batch.
        skipped: receives the paths of images that cannot be read; the reason is printed on stderr.

    Yields:
        Paths and images ``[B, in_chans, img_size, img_size]`` of the readable ones, in order, on the model's device.
    """
    transform = eval_transform(**{name: trained.data[name] for name in PREPROCESSING})
    for first in range(0, len(images), batch_size):
        batch: list[tuple[Path, Tensor]] = []
        for image in images[first : first + batch_size]:
            try:
                batch.append((Path(image.path), transform(image.load(trained.data["in_chans"]))))
            except UserError as error:
                skipped.append(Path(image.path))
                print(f"skipped: {error}", file=sys.stderr, flush=True)
        if batch:
            yield [path for path, _ in batch], torch.stack([pixels for _, pixels in batch]).to(trained.device)


def restore_pixels(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Undoes the normalization of images ``[..., C, H, W]``; returns values in 0..1 on the CPU."""
    mean_C11, std_C11 = (torch.tensor(list(values), dtype=images.dtype)[:, None, None] for values in (mean, std))
    return (images.cpu() * std_C11 + mean_C11).clamp(0, 1)


def report_skipped(skipped: Sequence[Path], total: int) -> int:
    """Prints on stderr how many images could not be read; returns the exit code: 0, or 1 if there are any."""
    if skipped:
        print(f"{len(skipped)} of {total} images could not be read", file=sys.stderr, flush=True)
    return 1 if skipped else 0
