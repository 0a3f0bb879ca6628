"""MixUp and CutMix: images of a batch are mixed with others of it, and so are their labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import v2

from vitfast.config.schema import AugmentConfig
from vitfast.data.seeding import derive_seed, seeded_generator


class BatchMixing:
    """torchvision's MixUp (Zhang et al., 2018) and CutMix (Yun et al., 2019); with both, a coin decides for each batch.

    What is drawn is a function of (seed, epoch, step), so that a resumed run mixes as the whole one.

    torchvision mixes each image with the one before it. The repeats of an image follow each other (see
    ``EpochBatchSampler``) and would be mixed with themselves, so that they are dealt apart first and put back after.

    Args:
        augment: ``mixup`` and ``cutmix`` are the parameters of the beta distributions; at least one is above 0.
            ``repeats`` is how often an image may follow itself in a batch.
        num_classes: K.
        seed: of the run.
    """

    def __init__(self, augment: AugmentConfig, num_classes: int, seed: int) -> None:
        kinds = []
        if augment.mixup:
            kinds.append(v2.MixUp(alpha=augment.mixup, num_classes=num_classes))
        if augment.cutmix:
            kinds.append(v2.CutMix(alpha=augment.cutmix, num_classes=num_classes))
        self._mix = v2.RandomChoice(kinds)
        self._repeats = augment.repeats
        self._seed = seed

    def __call__(self, images: Tensor, labels: Tensor, *, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Mixes a batch.

        Args:
            images: ``[B, C, H, W]``.
            labels: ``[B]``, int64.
            epoch: from 0.
            step: of the epoch, from 0.

        Returns:
            The mixed images, and the share of each class in them ``[B, K]``, float32.
        """
        if self._repeats > 1:
            positions = torch.arange(len(labels), device=labels.device)
            dealt = torch.cat([positions[first :: self._repeats] for first in range(self._repeats)])
            images, labels = images[dealt], labels[dealt]
        with seeded_generator(derive_seed("mixing", self._seed, epoch, step)):
            mixed_images, shares = self._mix(images, labels)
        if self._repeats > 1:
            back = dealt.argsort()
            mixed_images, shares = mixed_images[back], shares[back]
        return mixed_images, shares


def create_mixing(augment: AugmentConfig, num_classes: int, seed: int) -> BatchMixing | None:
    """Returns what mixes the training batches, or None if nothing is to be mixed."""
    return BatchMixing(augment, num_classes, seed) if augment.mixup or augment.cutmix else None
