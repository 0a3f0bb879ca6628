"""Data loader: batch order, reading in workers, and replacement of unreadable images."""

from __future__ import annotations

import copy
import math
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from vitfast.data.image_dataset import ImageDataset
from vitfast.data.seeding import derive_seed
from vitfast.errors import UserError
from vitfast.models.multi_crop import Crops

_GRACE_S = 30
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_HAS_POSIX_SIGNALS = hasattr(signal, "pthread_sigmask")  # Windows has neither signal masks nor SIGALRM


class EpochBatchSampler(Sampler[list[int]]):
    """The batches of one epoch from any position, as a stateless function of (seed, epoch).

    An interrupted run therefore continues with exactly the images that it would have read next.

    A sample is the number ``image + repetition * num_samples``; without repeats it is the image's index. With repeated
    augmentation (Hoffer et al., 2020; DeiT trains with 3 repeats) an epoch still has ``num_samples`` samples: the first
    ``ceil(num_samples / repeats)`` shuffled images, each ``repeats`` times (the last one less often if the division has
    a remainder).

    Batch k is ``order[start:][k * batch_size : (k + 1) * batch_size]`` for any number of ranks, and rank r of W takes
    the positions r, r + W, … of every batch: together the ranks read the batch of a single process, every sample once,
    and all ranks have the same number of batches. If the last batch has fewer samples than there are ranks, the last
    ranks get an empty list. Repeats of an image are adjacent in the order, so that they are on different ranks, as in
    DeiT, as far as the number of ranks allows.

    Args:
        num_samples: size of the data set.
        batch_size: samples in a batch, of all ranks together.
        seed: of the run.
        epoch: from 0.
        shuffle: whether the order is random; otherwise it is 0, 1, 2, …
        start: samples of the epoch to skip, of all ranks together.
        drop_last: whether to drop a smaller last batch.
        rank: of this process, 0..world - 1.
        world: number of ranks.
        repeats: how often an image appears in the epoch.

    Raises:
        ValueError: if ``start`` is not in 0..num_samples, or ``rank`` not in 0..world - 1.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        shuffle: bool,
        start: int = 0,
        drop_last: bool = False,
        rank: int = 0,
        world: int = 1,
        repeats: int = 1,
    ) -> None:
        if not 0 <= start <= num_samples:
            raise ValueError(f"start must be in 0..{num_samples}, the size of the data set, got {start}")
        if not 0 <= rank < world:
            raise ValueError(f"rank must be in 0..{world - 1}, since world={world}, got {rank}")
        images = torch.arange(num_samples)
        if shuffle:
            generator = torch.Generator().manual_seed(derive_seed("order", seed, epoch))
            images = torch.randperm(num_samples, generator=generator)
        chosen = images[: math.ceil(num_samples / repeats)]
        order = (chosen[:, None] + torch.arange(repeats) * num_samples).flatten()[start:num_samples]
        whole, rest = divmod(len(order), batch_size)
        self._batches = order.split(batch_size)[: whole + (1 if rest and not drop_last else 0)]
        self._share = slice(rank, None, world)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._batches:
            yield batch[self._share].tolist()


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
    """Builds the loader of one epoch; its batches are a function of these arguments except ``workers``.

    The ranks share every batch, see ``EpochBatchSampler`` also for the arguments; in evaluation, one rank reads each
    image once. The loader reads a copy of ``dataset`` that is set to ``epoch``, and does not use torch's global
    generator. ``workers`` processes with one thread each read the images, or this process if it is 0. ``warn`` is
    called in this process for each image that ``data.on_corrupt=skip`` skips, once for all loaders of ``dataset``.

    Returns:
        A loader of (images ``[B, C, H, W]`` float, or ``Crops``, and labels ``[B]`` int64), in pinned memory if there
        is a GPU. B is 0 for a rank without a share of the last batch, and for an evaluation batch without a readable
        image.

    Raises:
        ValueError: if ``start`` is outside the data set, or ``rank`` not below ``world``.
        UserError: from the loader, for an unreadable image, or for more of them than ``BadImages`` allows.
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
        collate_fn=tuple,  # ``BatchReader`` has collated the batch
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_start_worker,
        generator=torch.Generator().manual_seed(derive_seed("workers", seed, epoch)),
    )


class ImageLoader(DataLoader[Any]):
    """A DataLoader that handles unreadable images; created by ``build_loader``."""

    def __init__(self, dataset: ImageDataset, warn: Callable[[str], None], **options: Any) -> None:
        super().__init__(BatchReader(dataset), **options)
        self._images = dataset
        self._warn = warn

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:  # type: ignore[override]
        with _blocked_signals():
            batches = super().__iter__()
        try:
            for images, labels, bad in batches:
                for warning in self._images.bad_images.add(bad):
                    self._warn(warning)
                yield images, labels
        finally:
            # Ends the workers now. The garbage collector, which finds iterators in a traceback's reference cycle, would
            # close their queues before it tells the workers to end; torch then waits 5 s for each of them.
            del batches

    def image_of(self, sample: int) -> int:
        """Returns the image that was read for a sample of a batch that has been read."""
        return self._images.image_of(sample)


class BatchReader(Dataset[Any]):
    """Reads batches of samples, see ``EpochBatchSampler``.

    Unreadable images are returned in the batch, not raised: torch would turn a worker's exception into the text of a
    traceback, and the training process decides about them. A batch with more bad images than allowed is abandoned.
    """

    def __init__(self, dataset: ImageDataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitems__(self, samples: list[int]) -> tuple[Tensor | Crops, Tensor, dict[int, str]]:
        """Reads the images of some samples, or their replacements.

        Returns:
            Images ``[B, C, H, W]``, float, or their crops; labels ``[B]``, int64; index of each unreadable image ->
            reason.
        """
        bad: dict[int, str] = {}
        read = [pair for pair in (self._read(sample, bad) for sample in samples) if pair is not None]
        if read:
            images, labels = default_collate(read)
            return images if isinstance(images, Tensor) else Crops(images), labels, bad
        size = self._dataset.img_size
        return torch.empty(0, self._dataset.in_chans, size, size), torch.empty(0, dtype=torch.int64), bad

    def _read(self, sample: int, bad: dict[int, str]) -> tuple[Any, int] | None:
        """Returns an image and its label, or None without a readable candidate; adds unreadable images to ``bad``."""
        for index in self._dataset.candidates(sample):
            if len(bad) > self._dataset.bad_images.allowed:
                return None
            if index in bad:
                continue
            try:
                return self._dataset.read(index, sample)
            except UserError as error:
                bad[index] = str(error)
        return None


def _start_worker(worker: int) -> None:
    """Lets a worker survive a signal to the process group while the training process finishes its step and saves."""
    # invalid EXIF data are ignored; every worker would warn in every epoch
    warnings.filterwarnings("ignore", "(Possibly c|C)orrupt EXIF data|Metadata Warning")
    signal.set_wakeup_fd(-1)  # that of the training process, which must not take the worker's signals for its own
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not _HAS_POSIX_SIGNALS:
        return
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE_S))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """Blocks signals while workers start: they inherit the mask, and a signal before their setup would kill them."""
    if not _HAS_POSIX_SIGNALS:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
