"""The batches of an epoch: which samples, in which order, on which rank."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from vitfast.data.seeding import derive_seed


class EpochBatchSampler(Sampler[list[int]]):
    """The batches of one epoch, from any position: a function of (seed, epoch) without a state.

    So a run that was interrupted continues with exactly the images that it would have read next.

    A sample is the number ``image + repetition * num_samples``: without repeats it is the image's index. With repeated
    augmentation (Hoffer et al., 2020; DeiT trains with 3 repeats) an epoch still has ``num_samples`` samples, but of
    the shuffled images only the first ``ceil(num_samples / repeats)``, each ``repeats`` times (the last one less often
    where the division has a rest).

    Batch k is ``order[start:][k * batch_size : (k + 1) * batch_size]`` whatever the number of ranks, and rank r of W
    takes the positions r, r + W, … of every batch: the ranks' parts together are the batch of a single process, no
    sample is missing or read twice, and all ranks have the same number of batches. Where the last batch has fewer
    samples than there are ranks, the last ranks get an empty list. The repeats of an image follow each other in the
    order, so that they are on different ranks, as in DeiT, or as far apart as the number of ranks allows.

    Args:
        num_samples: size of the data set.
        batch_size: samples in a batch, of all ranks together.
        seed: of the run.
        epoch: which epoch, from 0.
        shuffle: whether the order is random; if not the images are 0, 1, 2, …
        start: how many samples of the epoch to skip, of all ranks together.
        drop_last: whether a smaller last batch is left out.
        rank: of this process, 0..world - 1.
        world: number of ranks.
        repeats: how often a chosen image comes in the epoch.

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
        self._num_samples = num_samples
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = epoch
        self._shuffle = shuffle
        self._start = start
        self._drop_last = drop_last
        self._rank = rank
        self._world = world
        self._repeats = repeats

    def __len__(self) -> int:
        whole, rest = divmod(self._num_samples - self._start, self._batch_size)
        return whole + (1 if rest and not self._drop_last else 0)

    def __iter__(self) -> Iterator[list[int]]:
        order = self._order()[self._start :]
        for batch in order.split(self._batch_size)[: len(self)]:
            yield batch[self._rank :: self._world].tolist()

    def _order(self) -> Tensor:
        """The samples of the whole epoch ``[num_samples]``."""
        if self._shuffle:
            generator = torch.Generator().manual_seed(derive_seed("order", self._seed, self._epoch))
            images = torch.randperm(self._num_samples, generator=generator)
        else:
            images = torch.arange(self._num_samples)
        chosen = images[: math.ceil(self._num_samples / self._repeats)]
        repetitions = torch.arange(self._repeats) * self._num_samples
        return (chosen[:, None] + repetitions).flatten()[: self._num_samples]
