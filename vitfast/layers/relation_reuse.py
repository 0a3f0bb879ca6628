"""What an exit's attention takes from the attention of the exit before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from vitfast.layers.fusion import has_hooks, may_fuse
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

    def forward(self, relations: Sequence[Tensor]) -> Iterable[Tensor]:
        """Computes the biases.

        Args:
            relations: for each layer of the previous exit its logits ``[B, H, 1 + g * g, 1 + g * g]``.

        Yields:
            For each layer of this exit a bias ``[B, H, 1 + G * G, 1 + G * G]``. It is brought to the finer grid when
            its layer asks for it: no cache would hold all of them together.
        """
        for mixed in self._mix(relations).chunk(self.num_layers, dim=1):
            yield self.upsample.relations(mixed)

    def _mix(self, relations: Sequence[Tensor]) -> Tensor:
        """Applies the perceptron: ``[B, L * H, 1 + g * g, 1 + g * g]``."""
        first, activation, second = self.mlp
        is_plain = may_fuse(first, second) and type(activation) is nn.GELU and not has_hooks(activation)
        if torch.is_grad_enabled() or relations[0].device.type != "cpu" or not is_plain:
            return self.mlp(torch.cat(tuple(relations), dim=1))
        # A convolution of 1 x 1 is a product, and as such three times as fast on a CPU. One image at a time stays in
        # the cache.
        (first_weight, first_bias), (second_weight, second_bias) = _matrix(first), _matrix(second)
        parts = []
        for image in zip(*relations, strict=True):
            hidden = torch.addmm(first_bias, first_weight, torch.cat(image).flatten(1))
            torch.ops.aten.gelu_.default(hidden, approximate=activation.approximate)
            parts.append(torch.addmm(second_bias, second_weight, hidden))  # [L * H, (1 + g * g)²]
        if not parts:
            return self.mlp(torch.cat(tuple(relations), dim=1))
        return torch.stack(parts).unflatten(2, relations[0].shape[2:])


def _matrix(convolution: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight ``[outputs, inputs]`` and bias ``[outputs, 1]`` of a 1 x 1 convolution."""
    assert isinstance(convolution, nn.Conv2d)
    assert convolution.bias is not None
    return convolution.weight.flatten(1), convolution.bias[:, None]
