"""A LayerNorm of an accelerated model."""

from __future__ import annotations

from torch import Tensor, nn

from vitfast import ops
from vitfast.inference.packed.plain_product import round_to_fp16


class PackedNorm(nn.Module):
    """LayerNorm over the last dimension; in FP16_32 its input is rounded to half precision.

    Args:
        weight: ``[C]``, or None for ones.
        bias: ``[C]``, or None for zeros.
        eps: added to the variance.
        rounds_input: whether the input is rounded.
    """

    operators = ("layer_norm",)

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, weight: Tensor | None, bias: Tensor | None, eps: float, *, rounds_input: bool) -> None:
        super().__init__()
        self.eps = eps
        self.rounds_input = rounds_input
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalizes ``x`` ``[..., C]``."""
        return ops.layer_norm(round_to_fp16(x) if self.rounds_input else x, self.weight, self.bias, self.eps)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Computes ``(x + residual, normalized sum)`` in one pass; for what is not rounded."""
        return ops.add_layer_norm(x, residual, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows in parentheses."""
        return f"eps={self.eps}, rounds_input={self.rounds_input}"
