"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) as their authors publish them, read by torchvision."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image
from torchvision import datasets

from vitfast.errors import UserError

SPLITS = ("train", "test")
_SOURCE = "https://www.cs.toronto.edu/~kriz/cifar.html"
_READERS = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}
# of the training pictures
_MEAN = {"cifar10": [0.4914, 0.4822, 0.4465], "cifar100": [0.5071, 0.4865, 0.4409]}
_STD = {"cifar10": [0.2470, 0.2435, 0.2616], "cifar100": [0.2673, 0.2564, 0.2762]}


class Cifar:
    """The pictures of one split, 32 x 32 in colour; an ``ImageSource``.

    torchvision compares the files with their published checksums before it unpickles them.

    Args:
        name: ``"cifar10"`` or ``"cifar100"`` (its 100 fine classes).
        root: the folder that holds ``cifar-10-batches-py`` or ``cifar-100-python``.
        split: ``"train"`` (50,000 pictures) or ``"test"`` (10,000).
        download: fetch and unpack the archive if it is not there.

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
                f"data.root={folder} holds no intact {reader.base_folder}: {error}\n"
                f"Unpack {reader.filename} from {_SOURCE} there, or set data.download=true"
            ) from error
        self.class_names = [str(class_name) for class_name in dataset.classes]
        self.labels = [int(label) for label in dataset.targets]
        self.mean, self.std = _MEAN[name], _STD[name]
        self._pixels_NHWC = dataset.data

    def path(self, index: int) -> None:
        """Many pictures share a file."""

    def read(self, index: int, in_chans: int) -> Image.Image:
        """Returns a picture of mode ``RGB``, or ``L`` for one channel."""
        image = Image.fromarray(self._pixels_NHWC[index])
        return image.convert("L") if in_chans == 1 else image
