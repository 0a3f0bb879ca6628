"""Where a model with exits stands between two of them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ExitState:
    """What the next exit needs of the ones before, for a batch of images that may shrink on the way.

    Attributes:
        images: ``[B, in_chans, img_size, img_size]``.
        next_exit: the exit that comes next, from 0.
        features: what the previous exit's last block gave, ``[B, N, C]``; None where nothing reads it.
        relations: for each layer of the previous exit its attention logits, ``[B, H, N, N]``; empty where nothing reads
            them.
    """

    images: Tensor
    next_exit: int = 0
    features: Tensor | None = None
    relations: tuple[Tensor, ...] = ()

    def select(self, indices: Tensor) -> ExitState:
        """Keeps some images only, so that the next exit computes nothing for the others.

        Args:
            indices: which, as numbers ``[K]`` or as a mask ``[B]``.
        """
        return ExitState(
            self.images[indices],
            self.next_exit,
            None if self.features is None else self.features[indices],
            tuple(relation[indices] for relation in self.relations),
        )
