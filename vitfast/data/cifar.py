"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) in the published archives, read by torchvision."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image
from torchvision import datasets

from vitfast.data.image_source import ImageSource
from vitfast.errors import UserError

SPLITS = ("train", "test")
_SOURCE = "https://www.cs.toronto.edu/~kriz/cifar.html"
_READERS = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}
# of the training images
_MEAN = {"cifar10": [0.4914, 0.4822, 0.4465], "cifar100": [0.5071, 0.4865, 0.4409]}
_STD = {"cifar10": [0.2470, 0.2435, 0.2616], "cifar100": [0.2673, 0.2564, 0.2762]}


class Cifar(ImageSource):
    """The images of one split, 32 x 32 RGB.

    torchvision verifies the published checksums of the files before it unpickles them.

    Args:
        name: ``"cifar10"`` or ``"cifar100"`` (its 100 fine classes).
        root: the folder of ``cifar-10-batches-py`` or ``cifar-100-python``.
        split: ``"train"`` (50,000 images) or ``"test"`` (10,000).
        download: download and unpack the archive if it is missing.

    Raises:
        UserError: if the data are missing or damaged, or there is no such split.
    """

    in_chans = 3
    img_size = 32
    crop_pct = 1.0

    def __init__(self, name: str, root: str | os.PathLike[str], split: str, download: bool = False) -> None:
        if split not in SPLITS:
            raise UserError(f"data.dataset={name} has no split {split!r}; use one of: {', '.join(SPLITS)}")
        folder = Path(root).expanduser()
        reader = _READERS[name]
        try:
            dataset = reader(str(folder), train=split == "train", download=download)
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"data.root={folder} contains no intact {reader.base_folder}: {error}\n"
                f"Unpack {reader.filename} from {_SOURCE} there, or set data.download=true"
            ) from error
        self.class_names = [str(class_name) for class_name in dataset.classes]
        self.labels = [int(label) for label in dataset.targets]
        self.mean, self.std = _MEAN[name], _STD[name]
        self._pixels_NHWC = dataset.data

    def read(self, index: int, in_chans: int) -> Image.Image:
        image = Image.fromarray(self._pixels_NHWC[index])
        return image.convert("L") if in_chans == 1 else image
