"""Handwritten digits: 1,797 grey images of 8 x 8 pixels, part of the package.

E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998,
https://doi.org/10.24432/C50P49, CC BY 4.0. These are the 1,797 images of its test file, in the same order as in
scikit-learn; a pixel counts the set pixels in a block of 4 x 4, 0 to 16.

``digits.npz`` was generated from scikit-learn's copy (tests/data/test_digits.py repeats and compares it)::

    images, labels = load_digits(return_X_y=True)
    shuffled = numpy.random.RandomState(0).permutation(1797)
    by_class = shuffled[numpy.argsort(labels[shuffled], kind="stable")]    # class by class, shuffled within
    rest = numpy.delete(by_class, slice(None, None, 5))
    split = numpy.zeros(1797, numpy.uint8)                                 # 0 train: 1,293 images
    split[by_class[::5]] = 2                                               # 2 test: every fifth, 360
    split[rest[::10]] = 1                                                  # 1 val: every tenth of the others, 144
    numpy.savez_compressed("digits.npz", images=images.reshape(-1, 8, 8).astype(numpy.uint8),
                           labels=labels.astype(numpy.uint8), split=split)

so that the class proportions of every split are those of the whole data set, to within two images.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from vitfast.data.image_source import ImageSource

SPLITS = ("train", "val", "test")
_FILE = Path(__file__).with_name("digits.npz")
_MAX_PIXEL = 16


class Digits(ImageSource):
    """The images of one split of the digits.

    Args:
        split: ``"train"`` (1,293 images), ``"val"`` (144) or ``"test"`` (360).
    """

    in_chans = 1
    img_size = 8
    crop_pct = 1.0

    def __init__(self, split: str) -> None:
        self.class_names = [str(digit) for digit in range(10)]
        self.mean = [0.3053]  # of the training split
        self.std = [0.3762]
        with np.load(_FILE) as arrays:
            chosen = arrays["split"] == SPLITS.index(split)
            images_NHW = arrays["images"][chosen].astype(np.float32) / _MAX_PIXEL
            self._images = [Image.fromarray(image_HW) for image_HW in images_NHW]
            self.labels = [int(label) for label in arrays["labels"][chosen]]

    def read(self, index: int, in_chans: int) -> Image.Image:
        """Returns an image of mode ``F``, values in 0..1; the transform repeats it for ``in_chans``."""
        return self._images[index]
