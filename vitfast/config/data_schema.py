"""The options ``data.*``: the images, how they are read, and their augmentation."""

from __future__ import annotations

from dataclasses import dataclass, field

from vitfast.config.option import format_value, option
from vitfast.errors import UserError

DATASETS = ("digits", "cifar10", "cifar100", "image_folder", "file_list")


@dataclass
class AugmentConfig:
    """Augmentation of the training images; 0 disables an operation."""

    crop_scale: float = option(0.0, "random resized crop: smallest share of the image area", minimum=0, maximum=1)
    crop_ratio: list[float] = option(
        [3 / 4, 4 / 3],
        "random resized crop: smallest and largest aspect ratio",
        above=0,
        length=[2],
    )
    crop_pad: int = option(0, "random shift: pixels of padding on each side before a random crop", minimum=0)
    flip: float = option(0.0, "probability of a horizontal flip", minimum=0, maximum=1)
    affine_degrees: float = option(0.0, "random rotation by up to ± this many degrees", minimum=0, maximum=180)
    affine_translate: float = option(0.0, "random shift by up to ± this share of the side", minimum=0, maximum=1)
    affine_scale: float = option(0.0, "random scale by a factor of 1 ± this", minimum=0, below=1)
    color_jitter: float = option(0.0, "brightness, contrast and saturation by a factor of 1 ± this", minimum=0, below=1)
    hue: float = option(0.0, "hue jitter by up to ± this share of the colour circle", minimum=0, maximum=0.5)
    color_jitter_p: float = option(1.0, "probability of color_jitter and hue", minimum=0, maximum=1)
    gray: float = option(0.0, "probability of a grey image", minimum=0, maximum=1)
    blur: float = option(0.0, "probability of Gaussian blur with sigma 0.1 to 2 pixels", minimum=0, maximum=1)
    rand_ops: int = option(0, "RandAugment: number of random operations per image", minimum=0)
    rand_magnitude: int = option(9, "RandAugment: magnitude of the operations", minimum=0, maximum=30)
    erase: float = option(
        0.0, "random erasing: probability that a random rectangle is replaced by noise", minimum=0, maximum=1
    )
    repeats: int = option(
        1,
        "repeated augmentation: differently augmented copies of an image in an epoch; the length of an epoch stays the "
        "same, so that each epoch has a different part of the images; 1: off, DeiT: 3",
        minimum=1,
    )
    num_crops: list[int] = option([], "task=swav: random resized crops of an image, for each size", minimum=1)
    size_crops: list[int] = option([], "task=swav: sizes of the crops in pixels", minimum=1)
    crop_scales: list[float] = option(
        [],
        "task=swav: smallest and largest share of the image area, for each size: [0.14,1,0.05,0.14] for two sizes",
        above=0,
        maximum=1,
    )
    mixup: float = option(0.0, "MixUp: alpha of the beta distribution", minimum=0)
    cutmix: float = option(
        0.0, "CutMix: alpha of the beta distribution; with MixUp, one of the two is chosen per batch", minimum=0
    )

    def check(self, prefix: str) -> None:
        """Raises UserError for options that contradict each other; ``prefix`` precedes their names."""
        if self.crop_scale and self.crop_pad:
            raise UserError(
                f"{prefix}crop_scale={self.crop_scale:g} and {prefix}crop_pad={self.crop_pad} exclude each other; "
                f"set one of them to 0"
            )
        if self.crop_ratio[0] > self.crop_ratio[1]:
            raise UserError(
                f"{prefix}crop_ratio={format_value(self.crop_ratio)}: the first number must not exceed the second"
            )
        self._check_crops(prefix)

    def _check_crops(self, prefix: str) -> None:
        sizes = len(self.num_crops)
        if len(self.size_crops) != sizes or len(self.crop_scales) != 2 * sizes:
            raise UserError(
                f"{prefix}num_crops={format_value(self.num_crops)}, {prefix}size_crops={format_value(self.size_crops)} "
                f"and {prefix}crop_scales={format_value(self.crop_scales)} do not fit together: give as many sizes as "
                "numbers of crops, and two scales for each"
            )
        if any(low > high for low, high in zip(self.crop_scales[::2], self.crop_scales[1::2], strict=True)):
            raise UserError(
                f"{prefix}crop_scales={format_value(self.crop_scales)}: of each pair the first number must not exceed "
                "the second"
            )
        if sizes and (self.crop_scale or self.crop_pad):
            name = "crop_scale" if self.crop_scale else "crop_pad"
            raise UserError(f"{prefix}{name} and {prefix}num_crops exclude each other; leave {prefix}{name} out")


@dataclass
class DataConfig:
    """The training and test images."""

    dataset: str = option("digits", "the data set; digits is embedded", choices=DATASETS)
    root: str | None = option(
        None,
        "folder of the data: for image_folder ROOT/train/CLASS/*, ROOT/val and/or ROOT/test, or ROOT/CLASS/*; for "
        "cifar10 and cifar100 where the archive is unpacked; for file_list the folder of train_imagepaths.txt",
    )
    download: bool = option(False, "cifar10, cifar100: download the archive if it is not in data.root")
    val_share: float = option(
        0.0,
        "if the data have no val split: share of each class's train images that is held out as the val split",
        minimum=0,
        below=1,
    )
    label_share: float = option(
        1.0,
        "share of each class's train images that are used, at least one image, chosen by the seed: 0.01 for semi-"
        "supervised fine-tuning",
        above=0,
        maximum=1,
    )
    img_size: int | None = option(
        None, "image size in pixels; null: the data set's (digits 8, cifar 32, others 224)", minimum=1
    )
    in_chans: int | None = option(None, "channels; null: the data set's (digits 1, others 3)", choices=[1, 3])
    batch_size: int = option(
        128, "images in an optimizer step, of all processes together; see train.accumulate", minimum=1
    )
    workers: int = option(0, "DataLoader worker processes; 0: the training process reads the images", minimum=0)
    on_corrupt: str = option(
        "raise",
        "an image that cannot be read; raise: stop with an error; skip: warn, replace it in training by another image, "
        "exclude it from evaluation, and stop when more than 0.1 % of the train split are unreadable",
        choices=["raise", "skip"],
    )
    allow_changes: bool = option(False, "resume with other numbers of images than the run had; never other classes")
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    resize: str = option(
        "short_side",
        "evaluation, and training without augment.crop_scale; short_side: keep the aspect ratio and crop the centre; "
        "both_sides: squash the image to a square; use crop_pct=1 to keep all of it",
        choices=["short_side", "both_sides"],
    )
    interpolation: str = option(
        "bicubic", "interpolation when images are resized", choices=["nearest", "bilinear", "bicubic"]
    )
    crop_pct: float | None = option(
        None,
        "evaluation: share of the resized image's side that the centre crop keeps; null: digits, cifar 1, others 0.875",
        minimum=0.1,
        maximum=1,
    )
    mean: list[float] | None = option(None, "mean of each channel, pixels in 0..1; null: the data set's", length=[1, 3])
    std: list[float] | None = option(
        None, "standard deviation of each channel; null: the data set's", above=0, length=[1, 3]
    )
    drop_last: bool = option(False, "drop the last batch of an epoch if it is smaller")

    def check(self, prefix: str) -> None:
        """Raises UserError for options that contradict each other; ``prefix`` precedes their names."""
        if self.dataset == "digits" and self.root is not None:
            raise UserError(
                f"{prefix}root={self.root} is given, but {prefix}dataset=digits is embedded and needs no folder; "
                f"add {prefix}dataset=image_folder, and choose a model for such images"
            )
        for name in ("color_jitter", "hue", "gray", "rand_ops"):
            if self.dataset == "digits" and getattr(self.augment, name):
                raise UserError(
                    f"{prefix}augment.{name} changes colours, but {prefix}dataset=digits has 17 levels of grey; "
                    "set it to 0"
                )
        if self.dataset != "digits" and self.root is None:
            holds = {"image_folder": "train/CLASS/*.jpg", "file_list": "train_imagepaths.txt and label_map.json"}.get(
                self.dataset, "the unpacked archive"
            )
            raise UserError(f"{prefix}dataset={self.dataset} needs {prefix}root=FOLDER with {holds}")


@dataclass
class EvaluateDataOptions:
    """Where the images come from; null: as the run was trained."""

    dataset: str | None = option(None, "the data set; null: that of the run", choices=DATASETS)
    root: str | None = option(None, "folder of the images; null: that of the run")
    batch_size: int | None = option(None, "images in a batch; null: that of the run", minimum=1)
    workers: int | None = option(None, "processes that read images; null: as the run", minimum=0)
    on_corrupt: str | None = option(
        None,
        "an image that cannot be read; raise: end and name it; skip: warn and leave it out; null: as the run",
        choices=["raise", "skip"],
    )


@dataclass
class ForeignDataOptions(EvaluateDataOptions):
    """Where the images come from, and how they are read; null: as the run was trained, or the usual default."""

    mean: list[float] | None = option(None, "a weights file: mean of each channel, pixels in 0..1", length=[1, 3])
    std: list[float] | None = option(None, "a weights file: standard deviation of each channel", above=0, length=[1, 3])
    resize: str | None = option(
        None, "a weights file: as in python -m vitfast.train", choices=["short_side", "both_sides"]
    )
    interpolation: str | None = option(
        None, "a weights file: how images are resized", choices=["nearest", "bilinear", "bicubic"]
    )
    crop_pct: float | None = option(
        None, "a weights file: share of the resized side that the centre crop keeps", minimum=0.1, maximum=1
    )
