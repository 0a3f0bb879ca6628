"""Batches of images, read in the training process or in workers, with the same result."""

from __future__ import annotations

import copy
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vitfast.data.batch_reader import BatchReader
from vitfast.data.epoch_batch_sampler import EpochBatchSampler
from vitfast.data.image_dataset import ImageDataset
from vitfast.data.seeding import derive_seed

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
    rank: int = 0,
    world: int = 1,
    warn: Callable[[str], None] = warnings.warn,
) -> ImageLoader:
    """Builds the loader of one epoch; its batches are a function of these arguments, ``workers`` aside.

    The ranks share every batch out among them, see ``EpochBatchSampler``; each image of a data set that is read in
    order, for evaluation, is thus read by one rank, once.

    It reads a copy of ``dataset`` that is set to ``epoch``, and it draws nothing from torch's global generator.

    Args:
        dataset: what to read.
        batch_size: images in a batch, of all ranks together.
        workers: processes that read ahead, with one thread each; 0 reads in this process.
        seed: of the order.
        epoch: of the order and the augmentation, from 0.
        shuffle: whether the order is random.
        drop_last: whether a smaller last batch is left out.
        start: samples of the epoch to skip, of all ranks together, to continue an interrupted one.
        rank: of this process, 0..world - 1.
        world: number of ranks.
        warn: called in this process for each image that ``data.on_corrupt=skip`` passes over, the first time that any
            loader of ``dataset`` comes across it.

    Returns:
        A loader of (images ``[B, C, H, W]`` float, labels ``[B]`` int64), in pinned memory if there is a GPU. B is 0
        for a rank that has no part of a last batch that is smaller than the number of ranks, and where none of a batch
        can be read that is measured.

    Raises:
        ValueError: if ``start`` is outside the data set, or ``rank`` not below ``world``.
        UserError: from the loader, for an image that cannot be read, or for more of them than ``BadImages`` allows.
    """
    dataset = copy.copy(dataset)
    dataset.set_epoch(epoch)
    sampler = EpochBatchSampler(
        len(dataset),
        batch_size,
        seed=seed,
        epoch=epoch,
        shuffle=shuffle,
        start=start,
        drop_last=drop_last,
        rank=rank,
        world=world,
        repeats=dataset.repeats,
    )
    return ImageLoader(
        dataset,
        warn,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_start_worker,
        generator=torch.Generator().manual_seed(derive_seed("workers", seed, epoch)),
    )


class ImageLoader(DataLoader[Any]):
    """A DataLoader that knows of images that cannot be read; made by ``build_loader``.

    Args:
        dataset: what to read, set to its epoch.
        warn: called for each image that is passed over and was not known to be bad.
        options: of the DataLoader.
    """

    def __init__(self, dataset: ImageDataset, warn: Callable[[str], None], **options: Any) -> None:
        super().__init__(BatchReader(dataset), **options)
        self._images = dataset
        self._warn = warn

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:  # type: ignore[override]
        with _held_signals():
            batches = super().__iter__()
        for images, labels, bad in batches:
            for warning in self._images.bad_images.add(bad):
                self._warn(warning)
            yield images, labels

    def image_of(self, sample: int) -> int:
        """Which image was read for a sample of a batch that has been read."""
        return self._images.image_of(sample)


def _as_it_is(batch: Any) -> Any:
    """The reader has put the batch together already."""
    return batch


def _start_worker(worker: int) -> None:
    """Lets a worker outlive a signal to the process group while the training process finishes its step and saves."""
    # EXIF data that cannot be parsed are passed over; every worker would say so in every epoch
    warnings.filterwarnings("ignore", "(Possibly c|C)orrupt EXIF data|Metadata Warning")
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
