"""What a data set brings before it is transformed."""

from __future__ import annotations

from typing import Protocol

from PIL import Image


class ImageSource(Protocol):
    """Labelled images of one split, and how they are best read.

    Attributes:
        labels: the class of each image.
        class_names: the name of each class.
        in_chans: channels by default.
        img_size: side in pixels by default.
        crop_pct: share that the centre crop of evaluation keeps by default.
        mean: mean of each of the ``in_chans`` channels, pixels in 0..1.
        std: their standard deviation.
    """

    labels: list[int]
    class_names: list[str]
    in_chans: int
    img_size: int
    crop_pct: float
    mean: list[float]
    std: list[float]

    def path(self, index: int) -> str | None:
        """The file of an image, if each has its own."""
        ...

    def read(self, index: int, in_chans: int) -> Image.Image:
        """Reads an image: 8-bit ``L`` or ``RGB``, or ``F`` with values in 0..1 (one channel, to be repeated)."""
        ...
