"""Calls of linear's CUDA gradient kernels by the programs of tests/simt, and checks of their results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from support import plain, simt
from vitfast.ops.tolerance import BACKWARD_FACTOR, assert_as_accurate


@dataclass(frozen=True)
class EpilogueGradientCase:
    """One call; float16 or bfloat16.

    Attributes:
        grad_out: ``[rows, columns]``.
        sum: ``[rows, columns]``, or None without an activation and a scale.
        scale: ``[columns]`` or None.
        activation: ``"none"``, ``"gelu"`` or ``"gelu_tanh"``.
        bias: whether sums for a bias are wanted.
        rows_per_chunk: of a row of partial sums.
    """

    grad_out: Tensor
    sum: Tensor | None = None
    scale: Tensor | None = None
    activation: str = "none"
    bias: bool = True
    rows_per_chunk: int = 16

    def run(
        self, *, variant: str = "plain", order: str = "forward", program: str | Path = "epilogue_gradient"
    ) -> dict[str, Tensor]:
        """Returns ``grad_sum`` [rows, columns], ``partial_bias`` and ``partial_scale`` [chunks, columns], as asked."""
        (rows, columns), dtype = self.grad_out.shape, self.grad_out.dtype
        chunks = (rows + self.rows_per_chunk - 1) // self.rows_per_chunk
        inputs = {"grad_out": self.grad_out, "sum": self.sum, "scale": self.scale}
        outputs: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        if self.sum is not None:
            outputs["grad_sum"] = ((rows, columns), dtype)
        if self.bias:
            outputs["partial_bias"] = ((chunks, columns), torch.float32)
        if self.scale is not None:
            outputs["partial_scale"] = ((chunks, columns), torch.float32)
        options = {
            "activation": self.activation,
            "rows": rows,
            "columns": columns,
            "rows_per_chunk": self.rows_per_chunk,
            "bias": int(self.bias),
        }
        given = {name: tensor for name, tensor in inputs.items() if tensor is not None}
        return simt.run(program, given, outputs, options, element=dtype, variant=variant, order=order)

    def check(self, results: dict[str, Tensor]) -> None:
        """Holds the results against float64, by the tolerance rule; partial sums are added up and rounded to the type.

        Raises:
            AssertionError: an element is less accurate than it should be, or was not written.
        """
        exact, same = self._gradients(torch.float64), self._gradients(self.grad_out.dtype)
        for name, result in results.items():
            found = result if name == "grad_sum" else result.sum(0).to(self.grad_out.dtype)
            assert_as_accurate(found, same[name], exact[name], factor=BACKWARD_FACTOR, name=name)

    def _gradients(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Those of a product by the identity whose result is ``sum``."""
        rows, columns = self.grad_out.shape
        sum_ = torch.zeros(rows, columns) if self.sum is None else self.sum
        leaves = {"grad_sum": sum_.to(dtype), "partial_bias": torch.zeros(columns, dtype=dtype)}
        if self.scale is not None:
            leaves["partial_scale"] = self.scale.to(dtype)
        leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items()}
        out = plain.linear(
            leaves["grad_sum"],
            torch.eye(columns, dtype=dtype),
            leaves["partial_bias"],
            activation=self.activation,
            scale=leaves.get("partial_scale"),
        )
        grads = torch.autograd.grad(out, list(leaves.values()), self.grad_out.to(dtype))
        return dict(zip(leaves, grads, strict=True))


def random_epilogue_gradient(
    rows: int, columns: int, parts: str = "gelu scale bias", dtype: torch.dtype = torch.bfloat16
) -> EpilogueGradientCase:
    """Normally distributed inputs; ``parts``: words of ``gelu``, ``gelu_tanh``, ``scale``, ``bias``."""
    named = parts.split()
    activation = next((name for name in ("gelu", "gelu_tanh") if name in named), "none")
    has_sum = activation != "none" or "scale" in named
    return EpilogueGradientCase(
        torch.randn(rows, columns).to(dtype),
        (1.5 * torch.randn(rows, columns)).to(dtype) if has_sum else None,
        torch.randn(columns).to(dtype) if "scale" in named else None,
        activation,
        "bias" in named,
    )


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
    """

    sums: Tensor
    pre_activation: Tensor

    def run(
        self, *, variant: str = "plain", order: str = "forward", program: str | Path = "gemm_gradient"
    ) -> dict[str, Tensor]:
        """Returns ``y`` [rows, columns] and ``partial`` [row tiles, columns], of each tile the sums of its columns."""
        (rows, columns), dtype = self.sums.shape, self.pre_activation.dtype
        outputs = {
            "y": ((rows, columns), dtype),
            "partial": (((rows + TILE_ROWS - 1) // TILE_ROWS, columns), torch.float32),
        }
        options = {"rows": rows, "columns": columns}
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
        return torch.autograd.grad(torch.nn.functional.gelu(leaf), leaf, self.sums.to(dtype))[0]


def random_gradient(rows: int, columns: int, dtype: torch.dtype = torch.bfloat16) -> GradientCase:
    """Normally distributed inputs, spread over both sides of zero."""
    return GradientCase(torch.randn(rows, columns), (1.5 * torch.randn(rows, columns)).to(dtype))
