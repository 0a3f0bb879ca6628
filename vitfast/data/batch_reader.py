"""Reading the images of a batch, in whatever process."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from vitfast.data.image_dataset import ImageDataset
from vitfast.errors import UserError


class ReadBatch(NamedTuple):
    """A batch as a worker hands it to the training process.

    Attributes:
        images: ``[B, C, H, W]``, float.
        labels: ``[B]``, int64.
        bad: the images that could not be read, and why.
    """

    images: Tensor
    labels: Tensor
    bad: dict[int, str]


class BatchReader(Dataset[Any]):
    """Reads batches by their samples (see ``EpochBatchSampler``).

    An image that cannot be read is no exception here, which torch would turn into the text of a traceback on its way
    from a worker: the training process is told and decides. A batch with more bad images than it allows is not
    read on; what has been read of it is of no use.

    Args:
        dataset: set to its epoch.
    """

    def __init__(self, dataset: ImageDataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitems__(self, samples: list[int]) -> ReadBatch:
        """Reads the images of some samples, or those that stand in for them."""
        bad: dict[int, str] = {}
        read = [pair for pair in (self._read(sample, bad) for sample in samples) if pair is not None]
        if read:
            images, labels = default_collate(read)
            return ReadBatch(images, labels, bad)
        size = self._dataset.img_size
        return ReadBatch(torch.empty(0, self._dataset.in_chans, size, size), torch.empty(0, dtype=torch.int64), bad)

    def _read(self, sample: int, bad: dict[int, str]) -> tuple[Tensor, int] | None:
        """Returns an image and its label, or None if none is left; adds to ``bad`` what it cannot read."""
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
