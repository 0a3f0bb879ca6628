"""The order of an epoch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from vitfast.data.seeding import derive_seed


class EpochSampler(Sampler[int]):
    """The indices of one epoch, from any position: a function of (seed, epoch) without a state.

    So a run that was interrupted continues with exactly the images that it would have read next.

    Args:
        num_samples: size of the data set.
        seed: of the run.
        epoch: which epoch, from 0.
        shuffle: whether the order is random; if not it is 0, 1, 2, …
        start: how many samples of the epoch to skip.

    Raises:
        ValueError: if ``start`` is not in 0..num_samples.
    """

    def __init__(self, num_samples: int, *, seed: int, epoch: int, shuffle: bool, start: int = 0) -> None:
        if not 0 <= start <= num_samples:
            raise ValueError(f"start must be in 0..{num_samples}, the size of the data set, got {start}")
        self._num_samples = num_samples
        self._seed = seed
        self._epoch = epoch
        self._shuffle = shuffle
        self._start = start

    def __len__(self) -> int:
        return self._num_samples - self._start

    def __iter__(self) -> Iterator[int]:
        if not self._shuffle:
            return iter(range(self._start, self._num_samples))
        generator = torch.Generator().manual_seed(derive_seed("order", self._seed, self._epoch))
        return iter(torch.randperm(self._num_samples, generator=generator)[self._start :].tolist())
