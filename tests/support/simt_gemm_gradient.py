"""The epilogue of a gradient's product, run by tests/simt/programs/gemm_gradient.cpp, and what holds for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from support import simt
from support.tolerance import BACKWARD_FACTOR, assert_as_accurate

TILE_ROWS = 128

# how exact the derivative is where it passes through zero (csrc/common/gelu.h)
DERIVATIVE_FLOOR = {torch.bfloat16: 5e-6, torch.float16: 2e-7}


def derivative(x: Tensor, activation: str) -> Tensor:
    """GELU's derivative in the type of x, in a form that keeps the lower tail."""
    if activation == "gelu_tanh":
        gate = torch.sigmoid(2 * (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))
        slope = 2 * (2 / torch.pi) ** 0.5 * (1 + 3 * 0.044715 * x**2)
        return gate + x * gate * (1 - gate) * slope
    return 0.5 * torch.special.erfc(-x * 0.5**0.5) + x * torch.exp(-0.5 * x * x) / (2 * torch.pi) ** 0.5


@dataclass(frozen=True)
class GradientCase:
    """One call.

    Attributes:
        sums: ``[rows, columns]``, float32: the product.
        pre_activation: ``[rows, columns]``, float16 or bfloat16.
        activation: ``"gelu"`` or ``"gelu_tanh"``.
    """

    sums: Tensor
    pre_activation: Tensor
    activation: str = "gelu"

    def run(
        self, *, variant: str = "plain", order: str = "forward", program: str | Path = "gemm_gradient"
    ) -> dict[str, Tensor]:
        """Returns ``y`` [rows, columns] and ``partial`` [row tiles, columns], of each tile the sums of its columns."""
        (rows, columns), dtype = self.sums.shape, self.pre_activation.dtype
        outputs = {
            "y": ((rows, columns), dtype),
            "partial": (((rows + TILE_ROWS - 1) // TILE_ROWS, columns), torch.float32),
        }
        options = {
            "activation": self.activation,
            "rows": rows,
            "columns": columns,
        }
        inputs = {"sums": self.sums, "pre_activation": self.pre_activation}
        return simt.run(program, inputs, outputs, options, element=dtype, variant=variant, order=order)

    def check(self, results: dict[str, Tensor]) -> None:
        """Holds the results against float64, by the tolerance rule.

        Raises:
            AssertionError: an element is less accurate than it should be, or was not written.
        """
        dtype = self.pre_activation.dtype
        exact = self._gradients(torch.float64)
        assert_as_accurate(results["y"], self._gradients(dtype), exact, factor=BACKWARD_FACTOR, name="y")
        tiles = zip(results["partial"], exact.split(TILE_ROWS), self.sums.split(TILE_ROWS), strict=True)
        for tile, (partial, part, sums) in enumerate(tiles):
            # what is added up is the derivative's error, less than half of a rounding to the type
            error = (partial.double() - part.sum(0)).abs()
            floor = DERIVATIVE_FLOOR[dtype] * sums.double().abs().sum(0)
            allowed = torch.finfo(dtype).eps / 4 * part.abs().sum(0) + floor
            assert (error <= allowed).all(), f"partial sums of tile {tile}: {error.max()} at {error.argmax()}"

    def _gradients(self, dtype: torch.dtype) -> Tensor:
        leaf = self.pre_activation.to(dtype).requires_grad_()
        approximate = "tanh" if self.activation == "gelu_tanh" else "none"
        y = torch.nn.functional.gelu(leaf, approximate=approximate)
        return torch.autograd.grad(y, leaf, self.sums.to(dtype))[0]


def random_gradient(
    rows: int, columns: int, dtype: torch.dtype = torch.bfloat16, activation: str = "gelu"
) -> GradientCase:
    """Normally distributed inputs, spread over both sides of zero."""
    return GradientCase(torch.randn(rows, columns), (1.5 * torch.randn(rows, columns)).to(dtype), activation)
