"""Preprocessing and augmentation of images and batches, composed of torchvision's transforms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms import v2

from vitfast.config.data_schema import AugmentConfig
from vitfast.data.seeding import derive_seed, seeded_generator
from vitfast.models.multi_crop import Crops

ImageTransform = Callable[[Image.Image], Image.Image]
TensorTransform = Callable[[Image.Image], Tensor]
Images = TypeVar("Images", Tensor, Crops)
Picture = TypeVar("Picture", Image.Image, Tensor)

_MAX_ASPECT_RATIO = 256


def eval_transform(
    img_size: int,
    in_chans: int,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str,
    crop_pct: float,
    resize: str = "short_side",
) -> TensorTransform:
    """Builds the evaluation transform: resize, centre crop, normalize.

    The short side, or both sides, are resized to ``floor(img_size / crop_pct)``, as in timm (its crop modes ``center``
    and ``squash``).

    Args:
        img_size: side of the result in pixels.
        in_chans: channels of the result; a grey image is repeated for three channels.
        mean: mean of each channel, pixels in 0..1; a single number applies to all channels.
        std: standard deviation of each channel.
        interpolation: ``"nearest"``, ``"bilinear"`` or ``"bicubic"``.
        crop_pct: share of the resized side that the crop keeps, in (0, 1].
        resize: ``"short_side"`` keeps the aspect ratio; ``"both_sides"`` resizes to a square.

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
    crop_scales: tuple[float, float] | None = None,
) -> TensorTransform:
    """Builds the training transform from the operations that ``augment`` enables.

    In this order: crop, affine map, flip, colour jitter, grey, Gaussian blur, RandAugment (Cubuk et al., 2019), and on
    the tensor random erasing (Zhong et al., 2017) with normally distributed pixels. All but the blur are torchvision's;
    every random number comes from torch's CPU generator.

    The other arguments and the result are those of ``eval_transform``. ``interpolation`` does not apply to the affine
    map, which is bilinear, nor to RandAugment, which is bilinear unless it is ``"nearest"``; ``resize`` does not apply
    to a random resized crop. ``crop_scales`` are the smallest and largest share of the image area of a random resized
    crop; None: from ``augment.crop_scale`` to 1 if that is set.
    """
    mode = v2.InterpolationMode(interpolation)
    steps: list[Callable[..., object]] = []
    if crop_scales is None and augment.crop_scale:
        crop_scales = (augment.crop_scale, 1.0)
    if crop_scales is not None:
        ratio = (augment.crop_ratio[0], augment.crop_ratio[1])
        steps.append(v2.RandomResizedCrop(img_size, crop_scales, ratio, interpolation=mode))
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
        jitter = v2.ColorJitter(*[augment.color_jitter] * 3, augment.hue)
        steps.append(jitter if augment.color_jitter_p == 1 else v2.RandomApply([jitter], augment.color_jitter_p))
    if augment.gray:
        steps.append(v2.RandomGrayscale(augment.gray))
    if augment.blur:
        steps.append(v2.RandomApply([random_blur], augment.blur))
    if augment.rand_ops:
        # fill with the data set's mean colour, as in DeiT
        fill = [round(255 * value) for value in mean]
        smooth = v2.InterpolationMode.NEAREST if interpolation == "nearest" else v2.InterpolationMode.BILINEAR
        steps.append(v2.RandAugment(augment.rand_ops, augment.rand_magnitude, interpolation=smooth, fill=fill))
    steps.append(ToNormalizedTensor(in_chans, mean, std))
    if augment.erase:
        steps.append(v2.RandomErasing(augment.erase, value="random"))
    transform: TensorTransform = v2.Compose(steps)
    return transform


class ResizeAndCrop:
    """Resizes an image and crops the centre square; an image of the right size is returned as is.

    The no-op of torchvision's two classes takes 40 us, half the time of a CIFAR image.
    """

    def __init__(self, img_size: int, crop_pct: float, interpolation: v2.InterpolationMode, resize: str) -> None:
        self.img_size = img_size
        self.side = math.floor(img_size / crop_pct)
        self.interpolation = interpolation
        self.size = {"short_side": [self.side], "both_sides": [self.side] * 2}[resize]

    def __call__(self, image: Picture) -> Picture:
        """Returns the square, ``img_size`` wide, of an image of PIL or a tensor ``[C, H, W]``."""
        size = list(image.shape[-2:]) if isinstance(image, Tensor) else [image.height, image.width]
        if size == [self.side, self.side] == [self.img_size, self.img_size]:
            return image
        if len(self.size) == 1 and max(size) > _MAX_ASPECT_RATIO * min(size):
            # only the centre is used, and resizing the whole image would take gigabytes
            longest = _MAX_ASPECT_RATIO * min(size)
            image = v2.functional.center_crop(image, [min(side, longest) for side in size])
        resized = v2.functional.resize(image, self.size, self.interpolation)
        cropped: Picture = v2.functional.center_crop(resized, [self.img_size])
        return cropped


class ToNormalizedTensor:
    """Converts a PIL image to a float tensor ``[C, H, W]`` with ``(pixel - mean) / std`` for pixels in 0..1.

    Equal to v2's ToImage, ToDtype(scale=True) and Normalize up to rounding, in a quarter of their 230 us for 32 x 32
    pixels. 8-bit images are divided by 255; images of mode ``F`` are in 0..1.
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


def random_blur(image: Image.Image) -> Image.Image:
    """Blurs an image with a sigma of 0.1 to 2 pixels by PIL's approximation of a Gaussian, as SwAV's original code."""
    sigma = float(torch.empty(1).uniform_(0.1, 2.0))
    return image.filter(ImageFilter.GaussianBlur(sigma))


class BatchMixing:
    """torchvision's MixUp (Zhang et al., 2018) and CutMix (Yun et al., 2019); with both, one is drawn for each batch.

    The random numbers are a function of (seed, epoch, step), so that a resumed run mixes like an uninterrupted one.

    torchvision mixes each image with its predecessor. Repeats of an image are adjacent (see ``EpochBatchSampler``) and
    would be mixed with themselves, so the batch is permuted before and after mixing.

    Each crop of ``Crops`` is mixed by a draw of its own, as in VISSL's DeiT and ConViT: with the same other image, but
    in other shares. The labels stay as they are.
    """

    def __init__(self, augment: AugmentConfig, num_classes: int, seed: int) -> None:
        kinds = ((v2.MixUp, augment.mixup), (v2.CutMix, augment.cutmix))
        self._mix = v2.RandomChoice([kind(alpha=alpha, num_classes=num_classes) for kind, alpha in kinds if alpha])
        self._repeats = augment.repeats
        self._seed = seed

    def __call__(self, images: Images, labels: Tensor, *, epoch: int, step: int) -> tuple[Images, Tensor]:
        """Mixes a batch.

        Args:
            images: ``[B, C, H, W]``, or several crops of each image.
            labels: ``[B]``, int64.
            epoch: from 0.
            step: of the epoch, from 0.

        Returns:
            The mixed images, and the class probabilities ``[B, K]``, float32; with ``Crops`` the labels.
        """
        with seeded_generator(derive_seed("mixing", self._seed, epoch, step)):
            if isinstance(images, Crops):
                return Crops([self._mix_tensor(crop, labels)[0] for crop in images.tensors]), labels
            return self._mix_tensor(images, labels)

    def _mix_tensor(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if self._repeats == 1:
            mixed: tuple[Tensor, Tensor] = self._mix(images, labels)
            return mixed
        positions = torch.arange(len(labels), device=labels.device)
        permutation = torch.cat([positions[first :: self._repeats] for first in range(self._repeats)])
        mixed_images, shares = self._mix(images[permutation], labels[permutation])
        inverse = permutation.argsort()
        return mixed_images[inverse], shares[inverse]


def create_mixing(augment: AugmentConfig, num_classes: int, seed: int) -> BatchMixing | None:
    """Returns the mixing of training batches, or None if ``augment`` has neither MixUp nor CutMix."""
    return BatchMixing(augment, num_classes, seed) if augment.mixup or augment.cutmix else None
