"""The map-style data set of training and evaluation."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from torch.utils.data import Dataset

from vitfast.config.data_schema import DataConfig
from vitfast.config.option import check_options
from vitfast.data import cifar, digits, file_list, image_folder
from vitfast.data.bad_images import BadImages
from vitfast.data.image_source import ImageSource, choose_share, hold_out
from vitfast.data.seeding import derive_seed, seeded_generator
from vitfast.data.transforms import TensorTransform, eval_transform, train_transform
from vitfast.errors import UserError

SPLITS = ("train", "val", "test")


class ImageDataset(Dataset[tuple[Any, int]]):
    """Images of one split as normalized tensors; created by ``build_dataset``.

    The augmentation of a sample, which is an image or, with repeated augmentation, one of its repetitions (see
    ``EpochBatchSampler``), is a function of (seed, epoch, sample). It depends neither on the number of workers nor on
    the images read before.

    Attributes:
        augment: whether images are augmented for training, rather than read as in evaluation.
        repeats: how often an image appears in an epoch.
        bad_images: the unreadable images, shared by all loaders of the data set.
        class_names: the name of each class.
        in_chans: channels of an image.
        img_size: its side in pixels.
        mean: channel means of the normalization.
        std: channel standard deviations of the normalization.
        resize: ``"short_side"`` or ``"both_sides"``, see ``eval_transform``.
        interpolation: of resizing.
        crop_pct: share of the resized side that the centre crop of evaluation keeps.
    """

    def __init__(
        self, source: ImageSource, data: DataConfig, *, augment: bool, seed: int, img_size: int | None = None
    ) -> None:
        self._source = source
        self.augment = augment
        self.repeats = data.augment.repeats if augment else 1
        self.bad_images = BadImages(len(source.labels), data.on_corrupt, measured=not augment)
        self._seed = seed
        self._epoch = 0
        self.class_names = source.class_names
        self.in_chans = data.in_chans or source.in_chans
        self.img_size = img_size or data.img_size or source.img_size
        self.mean = _per_channel(data.mean, source.mean, self.in_chans, "data.mean")
        self.std = _per_channel(data.std, source.std, self.in_chans, "data.std")
        self.resize = data.resize
        self.interpolation = data.interpolation
        self.crop_pct = data.crop_pct or source.crop_pct
        settings = (self.img_size, self.in_chans, self.mean, self.std, self.interpolation)
        self._transform: TensorTransform = (
            train_transform(data.augment, *settings, self.resize)
            if augment
            else eval_transform(*settings, self.crop_pct, self.resize)
        )
        self._crop_transforms: list[TensorTransform] = []
        if augment:
            scales = zip(data.augment.crop_scales[::2], data.augment.crop_scales[1::2], strict=True)
            kinds = zip(data.augment.num_crops, data.augment.size_crops, scales, strict=True)
            for count, size, limits in kinds:
                transform = train_transform(data.augment, size, *settings[1:], self.resize, limits)
                self._crop_transforms += [transform] * count

    def set_epoch(self, epoch: int) -> None:
        """Selects the epoch of the augmentation; ``build_loader`` calls it."""
        self._epoch = epoch

    def path(self, index: int) -> str | None:
        """Returns the file of an image; None if images have no files of their own."""
        return self._source.path(index)

    def assignment(self, root: str | None) -> str:
        """Returns a SHA-256 of the images' names below ``root`` and their labels; reads no image."""
        folder = "" if root is None else os.path.join(root, "")
        digest = hashlib.sha256()
        for index, label in enumerate(self._source.labels):
            name = (self._source.path(index) or "").removeprefix(folder)
            digest.update(f"\n{label} ".encode() + os.fsencode(name))
        return digest.hexdigest()

    def fingerprint(self) -> str:
        """Returns a SHA-256 of the class names, the labels and the images, independent of the preprocessing.

        Image files count by path, size and time of their last change; images without files by their pixels.
        """
        digest = hashlib.sha256(json.dumps(list(self.class_names)).encode())
        for index, label in enumerate(self._source.labels):
            path = self._source.path(index)
            if path is None:
                image = self._source.read(index, self.in_chans)
                digest.update(f"\n{label} {image.mode} {image.size} ".encode() + image.tobytes())
                continue
            with suppress(OSError):  # reading it will raise the error
                status = os.stat(path)
                digest.update(f"\n{label} {status.st_size} {status.st_mtime_ns} ".encode() + os.fsencode(path))
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._source.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of a data set of {len(self)}")
        return self.read(index, index)

    def candidates(self, sample: int) -> Iterator[int]:
        """Yields the image of a sample, then, in training, the images that replace it if it cannot be read.

        They are a function of (seed, epoch, sample), so that any run and any number of workers read the same images.
        """
        yield sample % len(self)
        if self.augment:
            for attempt in itertools.count():
                yield derive_seed("replacement", self._seed, self._epoch, sample, attempt) % len(self)

    def image_of(self, sample: int) -> int:
        """Returns the image that is read for a sample, given the known bad images."""
        return next((index for index in self.candidates(sample) if index not in self.bad_images), sample % len(self))

    def read(self, index: int, sample: int) -> tuple[Any, int]:
        """Reads an image.

        Args:
            index: of the image.
            sample: selects the augmentation.

        Returns:
            The image ``[C, H, W]``, or a tuple with its crops ``[C, size, size]`` for ``augment.num_crops``, and its
            label. The augmentation of a crop is a function of (seed, epoch, sample, number of the crop).

        Raises:
            UserError: if it cannot be read.
        """
        image, label = self._source.read(index, self.in_chans), int(self._source.labels[index])
        if not self.augment:
            return self._transform(image), label
        if self._crop_transforms:
            crops = []
            for number, transform in enumerate(self._crop_transforms):
                with seeded_generator(derive_seed("augmentation", self._seed, self._epoch, sample, number)):
                    crops.append(transform(image))
            return tuple(crops), label
        with seeded_generator(derive_seed("augmentation", self._seed, self._epoch, sample)):
            return self._transform(image), label


def available_splits(data: DataConfig) -> list[str]:
    """Lists the available splits of train, val and test, including a val split made by ``data.val_share``.

    Raises:
        UserError: if the options are invalid, or the folder is missing.
    """
    check_options(data, "data.")
    splits = _stored_splits(data)
    if _divides_train(data, splits):
        splits.insert(1, "val")
    return splits


def _divides_train(data: DataConfig, stored_splits: list[str]) -> bool:
    return data.val_share > 0 and "train" in stored_splits and "val" not in stored_splits


def _stored_splits(data: DataConfig) -> list[str]:
    if fixed := {"digits": digits.SPLITS, "cifar10": cifar.SPLITS, "cifar100": cifar.SPLITS}.get(data.dataset):
        return list(fixed)
    assert data.root is not None
    if data.dataset == "file_list":
        return file_list.available_splits(data.root)
    return image_folder.available_splits(data.root)


def build_dataset(
    data: DataConfig, split: str, *, seed: int, img_size: int | None = None, augment: bool | None = None
) -> ImageDataset:
    """Opens one split of a data set.

    Args:
        data: the data set and its preprocessing.
        split: ``"train"``, ``"val"`` or ``"test"``.
        seed: of the augmentation and of ``data.label_share``.
        img_size: side of the images in pixels; None: ``data.img_size``, or the default of the data set.
        augment: whether to apply ``data.augment``; None: for the train split only.

    Raises:
        UserError: if the options are invalid, or the data set has no such split or an unexpected layout.
    """
    if split not in SPLITS:
        raise UserError(f"there is no split {split!r}; allowed: {', '.join(SPLITS)}")
    check_options(data, "data.")
    if data.val_share and split != "test" and _divides_train(data, _stored_splits(data)):
        source: ImageSource = hold_out(_open_source(data, "train"), data.val_share, split)
    else:
        source = _open_source(data, split)
    if split == "train" and data.label_share < 1:
        source = choose_share(source, data.label_share, seed)
    if augment is None:
        augment = split == "train"
    return ImageDataset(source, data, augment=augment, seed=seed, img_size=img_size)


def _open_source(data: DataConfig, split: str) -> ImageSource:
    if data.dataset == "digits":
        return digits.Digits(split)
    assert data.root is not None
    if data.dataset in ("cifar10", "cifar100"):
        return cifar.Cifar(data.dataset, data.root, split, data.download)
    if data.dataset == "file_list":
        return file_list.FileList(data.root, split)
    return image_folder.ImageFolder(data.root, split)


def _per_channel(given: list[float] | None, default: list[float], in_chans: int, name: str) -> list[float]:
    """Returns one number per channel, from the option or the default of the data set."""
    if given is None:
        return list(default) if len(default) == in_chans else [sum(default) / len(default)] * in_chans
    if len(given) not in (1, in_chans):
        raise UserError(f"{name} has {len(given)} values, but the images have {in_chans} channels")
    return list(given) if len(given) == in_chans else list(given) * in_chans
