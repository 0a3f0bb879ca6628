"""From an image to a tensor: torchvision's transforms, put together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from vitfast.config.schema import AugmentConfig

ImageTransform = Callable[[Image.Image], Image.Image]
TensorTransform = Callable[[Image.Image], Tensor]

_LONGEST = 256  # proportion of the sides


def eval_transform(
    img_size: int,
    in_chans: int,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str,
    crop_pct: float,
    resize: str = "short_side",
) -> TensorTransform:
    """Builds what turns an image into the input of a model in evaluation.

    The short side, or both sides, are resized to ``floor(img_size / crop_pct)``, the centre square cut out and
    normalised, as timm does (its crop modes ``center`` and ``squash``).

    Args:
        img_size: side of the result in pixels.
        in_chans: channels of the result; a grey image for three channels is repeated.
        mean: mean of each channel, pixels in 0..1; a single number stands for all.
        std: standard deviation of each channel.
        interpolation: ``"nearest"``, ``"bilinear"`` or ``"bicubic"``.
        crop_pct: share of the resized side that is kept, in (0, 1].
        resize: ``"short_side"``, or ``"both_sides"``: to a square, whatever the image's proportions.

    Returns:
        A function from a PIL image to a float tensor ``[in_chans, img_size, img_size]``.
    """
    geometry = ResizeAndCrop(img_size, crop_pct, v2.InterpolationMode(interpolation), resize)
    transform: TensorTransform = v2.Compose([geometry, ToNormalizedTensor(in_chans, mean, std)])
    return transform


def train_transform(
    augment: AugmentConfig,
    img_size: int,
    in_chans: int,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str,
    resize: str = "short_side",
) -> TensorTransform:
    """Builds what turns an image into an input of training, by what is switched on.

    In this order: crop, affine map, flip, colour jitter, RandAugment (Cubuk et al., 2019), and on the tensor random
    erasing (Zhong et al., 2017) with normally distributed pixels. All are torchvision's; every random number comes from
    torch's CPU generator.

    Args:
        augment: what to change at random.
        img_size: side of the result in pixels.
        in_chans: channels of the result; a grey image for three channels is repeated.
        mean: mean of each channel, pixels in 0..1; a single number stands for all.
        std: standard deviation of each channel.
        interpolation: ``"nearest"``, ``"bilinear"`` or ``"bicubic"``; the affine map is always bilinear, and so is
            RandAugment unless this is ``"nearest"``.
        resize: as in evaluation; where there is no random resized crop, which makes a square itself.

    Returns:
        A function from a PIL image to a float tensor ``[in_chans, img_size, img_size]``.
    """
    mode = v2.InterpolationMode(interpolation)
    steps: list[Callable[..., object]] = []
    if augment.crop_scale:
        ratio = (augment.crop_ratio[0], augment.crop_ratio[1])
        steps.append(v2.RandomResizedCrop(img_size, (augment.crop_scale, 1.0), ratio, interpolation=mode))
    else:
        steps.append(ResizeAndCrop(img_size, 1.0, mode, resize))
    if augment.crop_pad:
        steps.append(v2.RandomCrop(img_size, padding=augment.crop_pad))
    if augment.affine_degrees or augment.affine_translate or augment.affine_scale:
        steps.append(
            v2.RandomAffine(
                augment.affine_degrees,
                translate=(augment.affine_translate, augment.affine_translate),
                scale=(1 - augment.affine_scale, 1 + augment.affine_scale),
                interpolation=v2.InterpolationMode.BILINEAR,
            )
        )
    if augment.flip:
        steps.append(v2.RandomHorizontalFlip(augment.flip))
    if augment.color_jitter or augment.hue:
        steps.append(v2.ColorJitter(*[augment.color_jitter] * 3, augment.hue))
    if augment.rand_ops:
        # what moves in from outside has the data set's mean colour, as in DeiT
        fill = [round(255 * value) for value in mean]
        smooth = v2.InterpolationMode.NEAREST if interpolation == "nearest" else v2.InterpolationMode.BILINEAR
        steps.append(v2.RandAugment(augment.rand_ops, augment.rand_magnitude, interpolation=smooth, fill=fill))
    steps.append(ToNormalizedTensor(in_chans, mean, std))
    if augment.erase:
        steps.append(v2.RandomErasing(augment.erase, value="random"))
    transform: TensorTransform = v2.Compose(steps)
    return transform


class ResizeAndCrop:
    """Resizes an image and cuts out the centre square; one that fits already passes at no cost.

    torchvision's two classes take 40 us to do nothing, which is half the time of a CIFAR image.

    Args:
        img_size: side of the square in pixels.
        crop_pct: share of the resized side that the square keeps.
        interpolation: how to resize.
        resize: ``"short_side"`` keeps the proportions, ``"both_sides"`` makes a square.
    """

    def __init__(self, img_size: int, crop_pct: float, interpolation: v2.InterpolationMode, resize: str) -> None:
        self.img_size = img_size
        self.side = math.floor(img_size / crop_pct)
        self.interpolation = interpolation
        self.size = {"short_side": [self.side], "both_sides": [self.side] * 2}[resize]

    def __call__(self, image: Image.Image) -> Image.Image:
        """Returns the square, ``img_size`` wide."""
        if image.size == (self.side, self.side) == (self.img_size, self.img_size):
            return image
        if len(self.size) == 1 and max(image.size) > _LONGEST * min(image.size):
            # all that is used of it is in the middle, and the whole would take gigabytes
            longest = _LONGEST * min(image.size)
            image = v2.functional.center_crop(image, [min(image.height, longest), min(image.width, longest)])
        resized = v2.functional.resize(image, self.size, self.interpolation)
        cropped: Image.Image = v2.functional.center_crop(resized, [self.img_size])
        return cropped


class ToNormalizedTensor:
    """Turns a PIL image into a float tensor ``[C, H, W]`` that is ``(pixel - mean) / std`` for pixels in 0..1.

    The same as v2's ToImage, ToDtype(scale=True) and Normalize, to rounding: in a quarter of their 230 us for 32 x 32.
    8-bit images are divided by 255; images of mode ``F`` are in 0..1 already.

    Args:
        in_chans: C; a grey image is repeated for three.
        mean: mean of each channel, or one number for all.
        std: standard deviation of each channel, or one number for all.
    """

    def __init__(self, in_chans: int, mean: Sequence[float], std: Sequence[float]) -> None:
        std_C11 = np.broadcast_to(np.asarray(std, np.float64), in_chans).reshape(in_chans, 1, 1)
        mean_C11 = np.broadcast_to(np.asarray(mean, np.float64), in_chans).reshape(in_chans, 1, 1)
        self.scale_C11 = (1 / std_C11).astype(np.float32)
        self.byte_scale_C11 = (1 / (255 * std_C11)).astype(np.float32)
        self.shift_C11 = (mean_C11 / std_C11).astype(np.float32)

    def __call__(self, image: Image.Image) -> Tensor:
        """Returns the tensor ``[C, H, W]``, which owns its memory."""
        pixels = np.asarray(image)  # [H, W] or [H, W, C]
        pixels_CHW = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        scale_C11 = self.scale_C11 if image.mode == "F" else self.byte_scale_C11
        values_CHW = np.multiply(pixels_CHW, scale_C11, order="C", dtype=np.float32)
        values_CHW -= self.shift_C11
        return torch.from_numpy(values_CHW)
