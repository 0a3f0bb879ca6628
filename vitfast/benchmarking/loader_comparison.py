"""Reading an image folder: vitfast's loader against torchvision's ImageFolder under torch's DataLoader."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, v2

from vitfast.benchmarking.agreement import joined
from vitfast.benchmarking.benchmark_run import measure_and_report
from vitfast.benchmarking.comparison import Comparison, Contest
from vitfast.benchmarking.run_options import RunOptions
from vitfast.benchmarking.subject import Subject
from vitfast.benchmarking.word_list import parse_counts
from vitfast.config import AugmentConfig, DataConfig, option
from vitfast.data import ImageDataset, build_dataset, build_loader

# what DeiT trains with: a random crop of 8 to 100 % of the area, and a flip
_CROP_SCALE = 0.08
_FLIP = 0.5
_SEED = 0


@dataclass
class LoaderOptions(RunOptions):
    """Measures how many images a second are read, decoded, resized and batched."""

    root: str = option(help="folder of images: ROOT/train/CLASS/*, ROOT/val and/or ROOT/test")
    split: str = option(
        "val", "train: random crop and flip; others: resize and centre crop", choices=["train", "val", "test"]
    )
    img_size: int = option(224, "side in pixels", minimum=1)
    batch: int = option(32, "images in a batch", minimum=1)
    workers: str = option("0,2", "processes that read ahead, one or more numbers; 0: the process itself reads")
    images: int = option(256, "images in a pass, at most; every pass starts its workers, as an epoch does", minimum=1)

    def check(self, prefix: str = "") -> None:
        """As ``RunOptions.check``."""
        super().check(prefix)
        parse_counts("workers", self.workers, minimum=0)

    def reported(self) -> dict[str, Any]:
        """All but the folder."""
        return {key: value for key, value in super().reported().items() if key != "root"}


def run_loader_benchmark(options: LoaderOptions) -> int:
    """Measures what the options ask for and prints it.

    Returns:
        The exit code: 0, or 1 if the two loaders give different images.

    Raises:
        UserError: the folder is not an image folder.
    """
    dataset = build_dataset(_data_config(options), options.split, seed=_SEED)
    comparisons = [
        _loader_comparison(options, dataset, workers) for workers in parse_counts("workers", options.workers, minimum=0)
    ]
    return measure_and_report(options, comparisons, torch.device("cpu"))


def _loader_comparison(options: LoaderOptions, dataset: ImageDataset, workers: int) -> Comparison:
    images = min(options.images, len(dataset))

    def build() -> Contest:
        rival = _torchvision_dataset(options, dataset)
        order = torch.randperm(len(rival), generator=torch.Generator().manual_seed(_SEED))[:images].tolist()

        def own_loader(shuffle: bool) -> Iterable[tuple[Tensor, Tensor]]:
            return build_loader(
                dataset,
                batch_size=options.batch,
                workers=workers,
                seed=_SEED,
                epoch=0,
                shuffle=shuffle,
                start=len(dataset) - images,  # what is left of the epoch is one pass
            )

        def torch_loader(indices: list[int]) -> Iterable[tuple[Tensor, Tensor]]:
            return DataLoader(Subset(rival, indices), batch_size=options.batch, num_workers=workers)

        in_order = list(range(len(dataset) - images, len(dataset)))
        is_random = options.split == "train"
        return Contest(
            subjects=[
                _subject("vitfast", lambda: own_loader(True), None if is_random else lambda: own_loader(False)),
                _subject("torchvision", lambda: torch_loader(order), None),
            ],
            reference=None if is_random else lambda: _first_batch(torch_loader(in_order)),
            reference_name="" if is_random else "torchvision's first batch",
            images=images,
        )

    return Comparison(
        mode="loader",
        title=f"{images} images of {options.split}, {options.img_size} x {options.img_size}, {workers} workers",
        labels={"split": options.split, "img_size": options.img_size, "batch": options.batch, "workers": workers},
        precision="fp32",
        weight=1.0,
        build=build,
    )


def _subject(
    name: str,
    shuffled: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    in_order: Callable[[], Iterable[tuple[Tensor, Tensor]]] | None,
) -> Subject:
    def read_all() -> None:
        for _ in shuffled():
            pass

    return Subject(name, run=read_all, output=None if in_order is None else lambda: _first_batch(in_order()))


def _first_batch(loader: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Images and labels of the first batch as one vector."""
    return joined(next(iter(loader)))


def _data_config(options: LoaderOptions) -> DataConfig:
    augment = AugmentConfig(crop_scale=_CROP_SCALE, flip=_FLIP) if options.split == "train" else AugmentConfig()
    return DataConfig(dataset="image_folder", root=options.root, img_size=options.img_size, augment=augment)


def _torchvision_dataset(options: LoaderOptions, dataset: ImageDataset) -> ImageFolder:
    """The same images, with the same geometry, by torchvision's classes as its own references put them together."""
    bicubic = InterpolationMode.BICUBIC
    if options.split == "train":
        geometry = [v2.RandomResizedCrop(options.img_size, (_CROP_SCALE, 1.0), interpolation=bicubic)]
        geometry.append(v2.RandomHorizontalFlip(_FLIP))
    else:
        short_side = int(options.img_size / dataset.crop_pct)
        geometry = [v2.Resize(short_side, interpolation=bicubic), v2.CenterCrop(options.img_size)]
    to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(dataset.mean, dataset.std)]
    folder = Path(options.root).expanduser() / options.split
    return ImageFolder(str(folder), v2.Compose([*geometry, *to_tensor]))
