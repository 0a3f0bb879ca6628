"""Attention logits that one exit of a Dynamic Vision Transformer passes to the next."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from vitfast.layers.attention import Attention
from vitfast.layers.fusion import has_hooks, may_fuse
from vitfast.layers.grid_upsample import GridUpsample


class RelationAttention(Attention):
    """``Attention`` with a bias added to the logits before the softmax, which can also return the logits.

    In the Dynamic Vision Transformer (Wang et al., 2021) the logits are the relations between tokens that one exit
    passes to the next. Gradients flow through both.
    """

    def forward(  # type: ignore[override]
        self, x: Tensor, relations: Tensor | None = None, *, return_relations: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Attends over the tokens of ``x`` ``[B, N, C]``, with ``relations`` ``[B, H, N, N]`` added to the logits.

        Returns:
            ``[B, N, C]``, and these logits ``[B, H, N, N]`` if ``return_relations``, else None.
        """
        if not return_relations:
            return self._project(self._attended(x, bias=relations)), None
        out, logits = self._attended(x, bias=relations, return_logits=True)
        return self._project(out), logits


class RelationReuse(nn.Module):
    """Turns the logits of all attention layers of one exit into biases for those of the next (Wang et al., 2021).

    A two-layer perceptron mixes all heads of all layers for each pair of tokens; the result is resampled to the finer
    grid and split over the layers.

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

    def forward(self, relations: Sequence[Tensor]) -> Iterable[Tensor]:
        """Computes the biases from the logits ``[B, H, 1 + g * g, 1 + g * g]`` of each layer of the previous exit.

        Yields:
            For each layer of this exit a bias ``[B, H, 1 + G * G, 1 + G * G]``, resampled when it is requested: all of
            them together would exceed any cache.
        """
        for mixed in self._mix(relations).chunk(self.num_layers, dim=1):
            yield self.upsample.relations(mixed)

    def _mix(self, relations: Sequence[Tensor]) -> Tensor:
        """Applies the perceptron: ``[B, L * H, 1 + g * g, 1 + g * g]``."""
        first, activation, second = cast(Any, self.mlp)
        is_plain = may_fuse(first, second) and type(activation) is nn.GELU and not has_hooks(activation)
        loops = relations[0].device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if not loops or not is_plain or not len(relations[0]):
            return self.mlp(torch.cat(tuple(relations), dim=1))
        # A 1 x 1 convolution computed as a GEMM is three times as fast on a CPU. One image at a time stays in cache.
        parts = []
        for image in zip(*relations, strict=True):
            hidden = torch.addmm(first.bias[:, None], first.weight.flatten(1), torch.cat(image).flatten(1))
            torch.ops.aten.gelu_.default(hidden, approximate=activation.approximate)
            parts.append(torch.addmm(second.bias[:, None], second.weight.flatten(1), hidden))  # [L * H, (1 + g * g)²]
        return torch.stack(parts).unflatten(2, relations[0].shape[2:])
