"""The map-style data set that training and evaluation read."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from torch import Tensor
from torch.utils.data import Dataset

from vitfast.config.option import check_options
from vitfast.config.schema import DataConfig
from vitfast.data import cifar, digits, file_list, image_folder
from vitfast.data.bad_images import BadImages
from vitfast.data.held_out import hold_out
from vitfast.data.image_source import ImageSource
from vitfast.data.seeding import derive_seed, seeded_generator
from vitfast.data.transforms import TensorTransform, eval_transform, train_transform
from vitfast.errors import UserError

SPLITS = ("train", "val", "test")


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Images of one split as normalised tensors; made by ``build_dataset``.

    Augmentation of a sample, which is an image or, with repeated augmentation, one of its repetitions (see
    ``EpochBatchSampler``), is a function of (seed, epoch, sample) alone: neither the number of workers nor what was
    read before changes it.

    Attributes:
        augment: whether images are changed at random, to learn from them, rather than read as in evaluation.
        repeats: how often a chosen image comes in an epoch.
        bad_images: those that could not be read; loaders of the data set keep it.
        class_names: the name of each class.
        in_chans: channels of an image.
        img_size: its side in pixels.
        mean: mean of each channel, which is subtracted.
        std: standard deviation of each channel, by which is divided.
        resize: ``"short_side"`` or ``"both_sides"``, which squashes images to a square.
        interpolation: how images are resized.
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
        self._transform = self._build_transform(data)

    def _build_transform(self, data: DataConfig) -> TensorTransform:
        how = (self.img_size, self.in_chans, self.mean, self.std, self.interpolation)
        if self.augment:
            return train_transform(data.augment, *how, self.resize)
        return eval_transform(*how, self.crop_pct, self.resize)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose augmentation is applied; ``build_loader`` does so for its own epoch."""
        self._epoch = epoch

    def path(self, index: int) -> str | None:
        """The file of an image, or None if the data set is not made of files."""
        return self._source.path(index)

    def __len__(self) -> int:
        return len(self._source.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of a data set of {len(self)}")
        return self.read(index, index)

    def candidates(self, sample: int) -> Iterator[int]:
        """The image that a sample is, and then those that stand in for it, one after the other, if it cannot be read.

        They are a function of (seed, epoch, sample), so that a rerun or another number of workers reads the same.
        Nothing stands in for an image that is not read to learn from it.
        """
        yield sample % len(self)
        if self.augment:
            for attempt in itertools.count():
                yield derive_seed("replacement", self._seed, self._epoch, sample, attempt) % len(self)

    def image_of(self, sample: int) -> int:
        """Which image was read for a sample, by what is known of bad images."""
        return next((index for index in self.candidates(sample) if index not in self.bad_images), sample % len(self))

    def read(self, index: int, sample: int) -> tuple[Tensor, int]:
        """Reads an image.

        Args:
            index: which image.
            sample: whose augmentation it gets.

        Returns:
            The image ``[C, H, W]`` and its label.

        Raises:
            UserError: if it cannot be read.
        """
        image, label = self._source.read(index, self.in_chans), int(self._source.labels[index])
        if not self.augment:
            return self._transform(image), label
        with seeded_generator(derive_seed("augmentation", self._seed, self._epoch, sample)):
            return self._transform(image), label


def available_splits(data: DataConfig) -> list[str]:
    """Lists which of train, val and test there are, in this order; a val split made by ``data.val_share`` is one.

    Raises:
        UserError: if the options of the data set are wrong, or its folder is missing.
    """
    check_options(data, "data.")
    splits = _own_splits(data)
    if _divides_train(data, splits):
        splits.insert(1, "val")
    return splits


def _divides_train(data: DataConfig, own_splits: list[str]) -> bool:
    return data.val_share > 0 and "train" in own_splits and "val" not in own_splits


def _own_splits(data: DataConfig) -> list[str]:
    if data.dataset == "digits":
        return list(digits.SPLITS)
    if data.dataset in ("cifar10", "cifar100"):
        return list(cifar.SPLITS)
    assert data.root is not None
    if data.dataset == "file_list":
        return file_list.available_splits(data.root)
    return image_folder.available_splits(data.root)


def build_dataset(
    data: DataConfig, split: str, *, seed: int, img_size: int | None = None, augment: bool | None = None
) -> ImageDataset:
    """Opens one split of a data set.

    Args:
        data: which data set, and how its images are read.
        split: ``"train"``, ``"val"`` or ``"test"``.
        seed: of the augmentation.
        img_size: side of the images in pixels; None: ``data.img_size``, or else that of the data set.
        augment: as ``data.augment`` says, rather than read as in evaluation; None: the train split alone.

    Raises:
        UserError: if the options are wrong, or the data set has no such split or is not laid out as it should be.
    """
    if split not in SPLITS:
        raise UserError(f"there is no split {split!r}; allowed: {', '.join(SPLITS)}")
    check_options(data, "data.")
    if data.val_share and split != "test" and _divides_train(data, _own_splits(data)):
        source: ImageSource = hold_out(_open_source(data, "train"), data.val_share, split)
    else:
        source = _open_source(data, split)
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
    """One number a channel, from what was given or else the default of the data set."""
    if given is None:
        return list(default) if len(default) == in_chans else [sum(default) / len(default)] * in_chans
    if len(given) not in (1, in_chans):
        raise UserError(f"{name} has {len(given)} values, but the images have {in_chans} channels")
    return list(given) if len(given) == in_chans else list(given) * in_chans
