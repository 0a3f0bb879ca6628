"""What an exit's attention takes from the attention of the exit before."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitfast.layers.grid_upsample import GridUpsample


class RelationReuse(nn.Module):
    """Turns the logits of all attention layers of one exit into biases for those of the next (Wang et al., 2021).

    A two-layer perceptron mixes all heads of all layers, for each pair of tokens on its own; the result is brought to
    the finer grid, and each layer gets its share.

    Args:
        num_layers: attention layers L of an exit.
        num_heads: heads H of a layer.
        upsample: between the grids of the two exits.
    """

    def __init__(self, num_layers: int, num_heads: int, upsample: GridUpsample) -> None:
        super().__init__()
        channels = num_layers * num_heads
        self.num_layers = num_layers
        self.mlp = nn.Sequential(nn.Conv2d(channels, 3 * channels, 1), nn.GELU(), nn.Conv2d(3 * channels, channels, 1))
        self.upsample = upsample

    def forward(self, relations: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Computes the biases.

        Args:
            relations: for each layer of the previous exit its logits ``[B, H, 1 + g * g, 1 + g * g]``.

        Returns:
            For each layer of this exit a bias ``[B, H, 1 + G * G, 1 + G * G]``.
        """
        mixed = self.mlp(torch.cat(tuple(relations), dim=1))  # [B, L * H, 1 + g * g, 1 + g * g]
        return self.upsample.relations(mixed).chunk(self.num_layers, dim=1)
