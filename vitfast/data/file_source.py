"""What data sets of image files have in common."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vitfast.data.image_file import load_image


class FileSource:
    """Images that are files below a folder; an ``ImageSource``, read as ImageNet is.

    Args:
        folder: what the paths begin at.
        paths: of the images, relative to it, as ``os.fsencode`` gives them.
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
        # An array, since a worker that counts references to a million strings would copy their pages.
        self._paths = np.array(paths)

    def path(self, index: int) -> str:
        """The file of an image."""
        return os.path.join(self.folder, os.fsdecode(self._paths[index]))

    def read(self, index: int, in_chans: int) -> Image.Image:
        """Decodes an image; see ``load_image``."""
        return load_image(self.path(index), in_chans)
