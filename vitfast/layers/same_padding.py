"""Padding as TensorFlow and JAX do it."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def pad_same(x: Tensor, kernel_size: int, stride: int, *, value: float = 0.0) -> Tensor:
    """Pads as ``padding="SAME"`` of JAX does, so that a window of stride s gives ceil(size / s) results.

    An odd number of rows and columns puts the one more below and on the right: that is where this differs from a
    symmetric padding, at stride 2 and an even size.

    Args:
        x: ``[B, C, height, width]``.
        kernel_size: height and width of the window.
        stride: distance between windows.
        value: of the padding.

    Returns:
        ``[B, C, height', width']``; ``x`` itself where nothing is to be added.
    """
    top, bottom = _same_padding(x.shape[-2], kernel_size, stride)
    left, right = _same_padding(x.shape[-1], kernel_size, stride)
    if not any((top, bottom, left, right)):
        return x
    return F.pad(x, (left, right, top, bottom), value=value)


def _same_padding(size: int, kernel_size: int, stride: int) -> tuple[int, int]:
    """How many numbers come before and after ``size`` others."""
    windows = -(-size // stride)
    padding = max((windows - 1) * stride + kernel_size - size, 0)
    return padding // 2, padding - padding // 2
