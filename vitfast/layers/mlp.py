"""The feed-forward half of a transformer block."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from vitfast import ops

GeluVariant = Literal["erf", "tanh"]


class Mlp(nn.Module):
    """``fc2(gelu(fc1(x)))``, with the residual addition in the same operator.

    ``fc1`` and ``fc2`` hold the parameters. The fused operator reads these directly, so forward hooks belong on this
    module rather than on the two.

    Args:
        dim: number of channels C.
        hidden_dim: width F of the hidden layer.
        out_dim: number of channels that come out; None for ``dim``.
        gelu: ``"erf"`` for the exact GELU, ``"tanh"`` for the approximation of Google's JAX models.
        drop_rate: dropout after the activation and after ``fc2``.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        *,
        out_dim: int | None = None,
        gelu: GeluVariant = "erf",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.approximate = "none" if gelu == "erf" else gelu  # torch's word for it
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim if out_dim is None else out_dim)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Computes ``mlp(x) + residual``.

        Args:
            x: ``[B, N, C]``.
            residual: ``[B, N, out_dim]``, or None to add nothing.

        Returns:
            ``[B, N, out_dim]``.
        """
        if self.training and self.drop.p > 0.0:
            hidden = self.drop(F.gelu(self.fc1(x), approximate=self.approximate))  # [B, N, F]
            out = self.drop(self.fc2(hidden))
            return out if residual is None else out + residual
        return ops.mlp(
            x,
            self.fc1.weight,
            self.fc1.bias,
            self.fc2.weight,
            self.fc2.bias,
            residual=residual,
            approximate=self.approximate,
        )

    def extra_repr(self) -> str:
        """What ``print(model)`` shows in parentheses."""
        return f"approximate={self.approximate!r}"
