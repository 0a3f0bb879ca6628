"""How many images a second are read from an image folder?

    python benchmarks/data_loader.py root=FOLDER [key=value …] json=benchmarks/results/data_loader-MACHINE.json
    python benchmarks/data_loader.py root=FOLDER split=train num_crops=[2,6] size_crops=[224,96] …

vitfast's loader is compared with torchvision's ImageFolder and transforms in torch's DataLoader, on the same files,
which an untimed pass first brings into the page cache. With ``num_crops`` both make SwAV's crops, the other one by the
transforms of its original code. ``--help`` lists the options.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, v2

from vitfast.benchmarking.harness import Case
from vitfast.benchmarking.run import run_tables
from vitfast.benchmarking.run_options import RunOptions
from vitfast.benchmarking.table import Table, joined
from vitfast.cli import run_command
from vitfast.config import AugmentConfig, DataConfig, load_options, option
from vitfast.data import ImageDataset, build_dataset, build_loader
from vitfast.data.transforms import random_blur
from vitfast.errors import UserError

Loader = Iterable[tuple[Tensor, Tensor]]

# DeiT's training: a random crop of 8 to 100 % of the area, and a horizontal flip
CROP_SCALE = 0.08
FLIP = 0.5
# SwAV: the largest crops show 14 to 100 % of the area, smaller ones 5 to 14 %
CROP_SCALES = ((0.14, 1.0), (0.05, 0.14))
JITTER, HUE, JITTER_P, GRAY, BLUR = 0.8, 0.2, 0.8, 0.2, 0.5
SEED = 0


@dataclass
class LoaderOptions(RunOptions):
    """Measures how many images a second are read, decoded, resized and batched."""

    root: str = option(help="folder of images: ROOT/train/CLASS/*, ROOT/val and/or ROOT/test")
    split: str = option(
        "val", "train: random crop and flip; others: resize and center crop", choices=["train", "val", "test"]
    )
    img_size: int = option(224, "height and width in pixels", minimum=1)
    num_crops: list[int] = option([], "SwAV's crops of an image, for one or two sizes", minimum=1)
    size_crops: list[int] = option([], "sizes of these crops in pixels", minimum=1)
    batch: int = option(32, "images per batch", minimum=1)
    workers: list[int] = option(
        [0, 2],
        "processes that read ahead, one or more numbers; 0: the main process reads",
        minimum=0,
    )
    images: int = option(256, "largest number of images per pass; each pass starts its workers", minimum=1)

    def reported(self) -> dict[str, Any]:
        """All but the folder."""
        return {key: value for key, value in super().reported().items() if key != "root"}


def list_tables(options: LoaderOptions) -> list[Table]:
    """A table for each number of workers."""
    is_train = options.split == "train"
    if options.num_crops and not (is_train and len(options.num_crops) == len(options.size_crops) <= len(CROP_SCALES)):
        raise UserError("num_crops needs split=train, and size_crops with as many sizes, one or two")
    augment = AugmentConfig(crop_scale=CROP_SCALE, flip=FLIP) if is_train else AugmentConfig()
    if options.num_crops:
        augment = AugmentConfig(
            num_crops=options.num_crops,
            size_crops=options.size_crops,
            crop_scales=[limit for scales in CROP_SCALES[: len(options.num_crops)] for limit in scales],
            flip=FLIP,
            color_jitter=JITTER,
            hue=HUE,
            color_jitter_p=JITTER_P,
            gray=GRAY,
            blur=BLUR,
        )
    config = DataConfig(dataset="image_folder", root=options.root, img_size=options.img_size, augment=augment)
    dataset = build_dataset(config, options.split, seed=SEED)
    return [loader_table(options, dataset, workers) for workers in dict.fromkeys(options.workers)]


def loader_table(options: LoaderOptions, dataset: ImageDataset, workers: int) -> Table:
    """Compares one pass over the images with both loaders."""
    images = min(options.images, len(dataset))

    def build(table: Table) -> list[Case]:
        other = torchvision_dataset(options, dataset)
        shuffled = torch.randperm(len(other), generator=torch.Generator().manual_seed(SEED))[:images].tolist()
        in_order = list(range(len(dataset) - images, len(dataset)))

        def vitfast_loader(shuffle: bool) -> Loader:
            return build_loader(
                dataset,
                batch_size=options.batch,
                workers=workers,
                seed=SEED,
                epoch=0,
                shuffle=shuffle,
                start=len(dataset) - images,  # the rest of the epoch is one pass
            )

        def torch_loader(indices: list[int]) -> Loader:
            return DataLoader(Subset(other, indices), batch_size=options.batch, num_workers=workers)

        table.images = images
        output = None
        if options.split != "train":  # random crops cannot be compared
            table.reference = _first_batch(torch_loader(in_order))
            table.reference_name = "torchvision's first batch"
            output = lambda: _first_batch(vitfast_loader(False))  # noqa: E731
        return [
            Case("vitfast", lambda: _read_all(vitfast_loader(True)), output),
            Case("torchvision", lambda: _read_all(torch_loader(shuffled))),
        ]

    kinds = zip(options.num_crops, options.size_crops, strict=True)
    pixels = " and ".join(f"{count} x {size} x {size}" for count, size in kinds)
    pixels = pixels or f"{options.img_size} x {options.img_size}"
    title = f"{images} images of {options.split}, {pixels}, {workers} workers"
    labels = {"split": options.split, "pixels": pixels, "batch": options.batch, "workers": workers}
    return Table("loader", title, labels, "fp32", build)


def _read_all(loader: Loader) -> None:
    for _ in loader:
        pass


def _first_batch(loader: Loader) -> Tensor:
    """Images and labels of the first batch as one vector."""
    return joined(next(iter(loader)))


def torchvision_dataset(options: LoaderOptions, dataset: ImageDataset) -> ImageFolder:
    """The same images with the same geometry, as in torchvision's reference scripts."""
    bicubic = InterpolationMode.BICUBIC
    geometry: list[Callable[[Any], Any]]
    if options.split == "train":
        geometry = [v2.RandomResizedCrop(options.img_size, (CROP_SCALE, 1.0), interpolation=bicubic)]
        geometry.append(v2.RandomHorizontalFlip(FLIP))
    else:
        short_side = int(options.img_size / dataset.crop_pct)
        geometry = [v2.Resize(short_side, interpolation=bicubic), v2.CenterCrop(options.img_size)]
    to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(dataset.mean, dataset.std)]
    folder = Path(options.root).expanduser() / options.split
    if options.num_crops:
        return ImageFolder(str(folder), swav_crops(options, dataset))
    return ImageFolder(str(folder), v2.Compose([*geometry, *to_tensor]))


def swav_crops(options: LoaderOptions, dataset: ImageDataset) -> Callable[[Any], Any]:
    """The transforms of SwAV's original code, which makes one list of crops per image."""
    crops: list[Callable[[Any], Any]] = []
    for count, size, scales in zip(options.num_crops, options.size_crops, CROP_SCALES, strict=False):
        steps = [
            transforms.RandomResizedCrop(size, scales),
            transforms.RandomHorizontalFlip(FLIP),
            transforms.RandomApply([transforms.ColorJitter(JITTER, JITTER, JITTER, HUE)], JITTER_P),
            transforms.RandomGrayscale(GRAY),
            transforms.RandomApply([random_blur], BLUR),
            transforms.ToTensor(),
            transforms.Normalize(dataset.mean, dataset.std),
        ]
        crops += [transforms.Compose(steps)] * count
    return lambda image: [crop(image) for crop in crops]


def main(arguments: Sequence[str]) -> int:
    options = load_options(LoaderOptions, list(arguments), "python benchmarks/data_loader.py")
    return run_tables(options, list_tables(options), torch.device("cpu"))[0]


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
