"""Sources of labelled images: the base class, image files in a folder, and parts of a train split."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vitfast.data.image_file import load_image
from vitfast.data.seeding import derive_seed
from vitfast.errors import UserError


class ImageSource:
    """Labelled images of one split, and the defaults for reading them.

    Attributes:
        labels: the class of each image.
        class_names: the name of each class.
        in_chans: default number of channels.
        img_size: default side in pixels.
        crop_pct: default share of the side that the evaluation crop keeps.
        mean: mean of each of the ``in_chans`` channels, pixels in 0..1.
        std: standard deviation of each channel.
    """

    labels: list[int]
    class_names: list[str]
    in_chans: int
    img_size: int
    crop_pct: float
    mean: list[float]
    std: list[float]

    def path(self, index: int) -> str | None:
        """Returns the file of an image; None if images have no files of their own."""
        return None

    def read(self, index: int, in_chans: int) -> Image.Image:
        """Reads an image: 8-bit ``L`` or ``RGB``, or ``F`` with values in 0..1 (one channel, repeated if needed)."""
        raise NotImplementedError


class FileSource(ImageSource):
    """Image files in a folder, with ImageNet's normalization and crop.

    Args:
        folder: the folder that the paths are relative to.
        paths: of the images, relative to ``folder``, as from ``os.fsencode``.
        labels: the class of each image.
        class_names: the name of each class.
    """

    in_chans = 3
    img_size = 224
    crop_pct = 0.875

    def __init__(self, folder: Path, paths: Sequence[bytes], labels: list[int], class_names: list[str]) -> None:
        self.mean = [0.485, 0.456, 0.406]  # ImageNet
        self.std = [0.229, 0.224, 0.225]
        self.folder = folder
        self.labels = labels
        self.class_names = class_names
        # an array: reference counting of a million strings would copy their pages in every worker
        self._paths = np.array(paths)

    def path(self, index: int) -> str:
        return os.path.join(self.folder, os.fsdecode(self._paths[index]))

    def read(self, index: int, in_chans: int) -> Image.Image:
        return load_image(self.path(index), in_chans)


class SourceSubset(ImageSource):
    """Some of the images of another source."""

    def __init__(self, source: ImageSource, indices: list[int]) -> None:
        self._source = source
        self._indices = indices
        self.labels = [source.labels[index] for index in indices]
        self.class_names = source.class_names
        self.in_chans, self.img_size, self.crop_pct = source.in_chans, source.img_size, source.crop_pct
        self.mean, self.std = source.mean, source.std

    def path(self, index: int) -> str | None:
        return self._source.path(self._indices[index])

    def read(self, index: int, in_chans: int) -> Image.Image:
        return self._source.read(self._indices[index], in_chans)


def hold_out(source: ImageSource, share: float, split: str) -> SourceSubset:
    """Divides a train split into a smaller train split and a validation split.

    Of every class, ``share`` of the images are held out, evenly spaced in their order. Nothing is random, so that no
    run trains on images that another run held out.

    Args:
        source: the whole train split.
        share: above 0, below 1.
        split: ``"val"`` for the images that are held out; ``"train"`` for the others.

    Raises:
        UserError: if the split would be empty.
    """
    by_class = _images_by_class(source)
    held_out: set[int] = set()
    for indices in by_class.values():
        count = round(len(indices) * share)
        held_out.update(indices[(2 * place + 1) * len(indices) // (2 * count)] for place in range(count))
    chosen = [index for index in range(len(source.labels)) if (index in held_out) == (split == "val")]
    if not chosen:
        raise UserError(
            f"data.val_share={share:g} leaves the {split} split without an image; the train split has "
            f"{len(source.labels):,} images of {len(by_class)} classes; choose another share"
        )
    return SourceSubset(source, chosen)


def choose_share(source: ImageSource, share: float, seed: int) -> SourceSubset:
    """Returns a random part of a train split with ``share`` of the images of each class, at least one.

    With the same seed, the images of a smaller share are among those of a larger one.
    """
    chosen = []
    for label, indices in _images_by_class(source).items():
        generator = torch.Generator().manual_seed(derive_seed("label_share", seed, label))
        order = torch.randperm(len(indices), generator=generator).tolist()
        chosen += [indices[place] for place in order[: max(1, round(len(indices) * share))]]
    return SourceSubset(source, sorted(chosen))


def _images_by_class(source: ImageSource) -> dict[int, list[int]]:
    by_class: dict[int, list[int]] = {}
    for index, label in enumerate(source.labels):
        by_class.setdefault(label, []).append(index)
    return by_class
