"""Attention logits that one exit of a Dynamic Vision Transformer passes to the next."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from vitfast.layers.attention import Attention
from vitfast.layers.fusion import has_hooks, may_fuse
from vitfast.layers.grid_upsample import GridUpsample
from vitfast.ops.autocast import keep_float32


class RelationAttention(Attention):
    """``Attention`` with a bias added to the logits before the softmax, which can also return the logits.

    In the Dynamic Vision Transformer (Wang et al., 2021) the logits are the relations between tokens that one exit
    passes to the next. Gradients flow through both.
    """

    def forward(  # type: ignore[override]
        self, x: Tensor, relations: Tensor | None = None, *, return_relations: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Attends over the tokens of ``x``.

        Args:
            x: ``[B, N, C]``.
            relations: ``[B, H, N, N]``, added to the logits; or None.
            return_relations: also return the logits, with ``relations`` added.

        Returns:
            ``[B, N, C]``, and the logits ``[B, H, N, N]`` or None.
        """
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # [B, N, 3, H, D]
        dropout_p = self.attention_drop_rate if self.training else 0.0
        logits = None
        with keep_float32(qkv):
            if return_relations:
                out, logits = self.attend(qkv, bias=relations, return_logits=True, dropout_p=dropout_p)
            else:
                out = self.attend(qkv, bias=relations, dropout_p=dropout_p)
        return self.proj_drop(self.proj(out.flatten(-2))), logits


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
        """Computes the biases.

        Args:
            relations: for each layer of the previous exit its logits ``[B, H, 1 + g * g, 1 + g * g]``.

        Yields:
            For each layer of this exit a bias ``[B, H, 1 + G * G, 1 + G * G]``, resampled when it is requested: all of
            them together would exceed any cache.
        """
        for mixed in self._mix(relations).chunk(self.num_layers, dim=1):
            yield self.upsample.relations(mixed)

    def _mix(self, relations: Sequence[Tensor]) -> Tensor:
        """Applies the perceptron: ``[B, L * H, 1 + g * g, 1 + g * g]``."""
        first, activation, second = self.mlp
        is_plain = may_fuse(first, second) and type(activation) is nn.GELU and not has_hooks(activation)
        if torch.is_grad_enabled() or relations[0].device.type != "cpu" or not is_plain:
            return self.mlp(torch.cat(tuple(relations), dim=1))
        # A 1 x 1 convolution computed as a GEMM is three times as fast on a CPU. One image at a time stays in cache.
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
