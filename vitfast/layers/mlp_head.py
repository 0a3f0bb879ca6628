"""vissl's ``mlp`` head."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from vitfast.errors import UserError


class MlpHead(nn.Module):
    """(Linear, BatchNorm, ReLU, dropout)*, Linear: vissl's head ``mlp``, with its parameter names.

    BatchNorm, ReLU and dropout are optional. Two widths make a linear head.

    Args:
        dims: widths, from the channels of the features to the outputs.
        use_bn: whether BatchNorm follows a linear layer.
        use_relu: whether ReLU follows a linear layer.
        use_dropout: whether dropout of rate 0.5 follows a linear layer.
        use_bias: whether the linear layers have biases.
        skip_last_layer_relu_bn: whether the last linear layer is the last module.
        activation: class of the activation that ``use_relu`` adds.

    Raises:
        UserError: there are fewer than two widths, or one is below 1.
    """

    def __init__(
        self,
        dims: Sequence[int],
        *,
        use_bn: bool = False,
        use_relu: bool = False,
        use_dropout: bool = False,
        use_bias: bool = True,
        skip_last_layer_relu_bn: bool = True,
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        if len(dims) < 2 or min(dims) < 1:
            raise UserError(
                "dims must list at least two widths of at least 1, the features' first, for example [768, 1000]; "
                f"got {list(dims)}"
            )
        layers: list[nn.Module] = []
        for width, next_width in pairwise(dims):
            layers.append(nn.Linear(width, next_width, bias=use_bias))
            if use_bn:
                layers.append(nn.BatchNorm1d(next_width))
            if use_relu:
                layers.append(activation())
            if use_dropout:
                layers.append(nn.Dropout())
        while skip_last_layer_relu_bn and not isinstance(layers[-1], nn.Linear):
            layers.pop()
        self.clf = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """Maps features ``[B, dims[0]]``, a model's pooled channels, to ``[B, dims[-1]]``."""
        out: Tensor = self.clf(features)
        return out
