"""The check of what a model is given."""

from __future__ import annotations

from torch import Tensor


def check_images(images: Tensor, in_chans: int, img_size: int) -> None:
    """Checks that images are floating point, ``[B, in_chans, img_size, img_size]``.

    Raises:
        TypeError: they are not floating point.
        ValueError: they have another shape.
    """
    if images.dim() != 4 or tuple(images.shape[1:]) != (in_chans, img_size, img_size):
        raise ValueError(
            f"images must have shape [B, {in_chans}, {img_size}, {img_size}], got {list(images.shape)}; resize them, "
            "or create the model with other img_size or in_chans"
        )
    if not images.is_floating_point():
        raise TypeError(f"images must be floating point, got {images.dtype}; convert and normalize them first")
