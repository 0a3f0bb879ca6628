"""Batches of images, read in the training process or in workers, with the same result."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from vitfast.data.epoch_sampler import EpochSampler
from vitfast.data.image_dataset import ImageDataset
from vitfast.data.seeding import derive_seed
from vitfast.errors import UserError

_GRACE_S = 30
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def build_loader(
    dataset: ImageDataset,
    *,
    batch_size: int,
    workers: int,
    seed: int,
    epoch: int,
    shuffle: bool,
    drop_last: bool = False,
    start: int = 0,
) -> ImageLoader:
    """Builds the loader of one epoch; its batches are a function of these arguments, ``workers`` aside.

    It reads a copy of ``dataset`` that is set to ``epoch``, and it draws nothing from torch's global generator.

    Args:
        dataset: what to read.
        batch_size: images in a batch.
        workers: processes that read ahead, with one thread each; 0 reads in this process.
        seed: of the order.
        epoch: of the order and the augmentation, from 0.
        shuffle: whether the order is random.
        drop_last: whether a smaller last batch is left out.
        start: samples of the epoch to skip, to continue an interrupted one.

    Returns:
        A loader of (images ``[B, C, H, W]`` float, labels ``[B]`` int64), in pinned memory if there is a GPU.

    Raises:
        ValueError: if ``start`` is outside the data set.
    """
    dataset = copy.copy(dataset)
    dataset.set_epoch(epoch)
    return ImageLoader(
        _Reader(dataset),
        batch_size=batch_size,
        sampler=EpochSampler(len(dataset), seed=seed, epoch=epoch, shuffle=shuffle, start=start),
        num_workers=workers,
        drop_last=drop_last,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_start_worker,
        generator=torch.Generator().manual_seed(derive_seed("workers", seed, epoch)),
    )


class ImageLoader(DataLoader[Any]):
    """A DataLoader that raises a worker's UserError as it is, where torch would wrap it in the text of a traceback."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:  # type: ignore[override]
        with _held_signals():
            batches = super().__iter__()
        for batch in batches:
            if isinstance(batch, UserError):
                raise batch
            yield batch


class _Reader(Dataset[Any]):
    """Reads a batch at once, and hands a UserError on as a value."""

    def __init__(self, dataset: ImageDataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, int]] | UserError:
        try:
            return [self._dataset[index] for index in indices]
        except UserError as error:
            return error.with_traceback(None)


def _collate(samples: list[tuple[Tensor, int]] | UserError) -> Any:
    return samples if isinstance(samples, UserError) else tuple(default_collate(samples))


def _start_worker(worker: int) -> None:
    """Lets a worker outlive a signal to the process group while the training process finishes its step and saves."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE_S))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)


@contextmanager
def _held_signals() -> Iterator[None]:
    """Lets signals wait while workers start: they inherit it, and would die of one that finds them unprepared."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
