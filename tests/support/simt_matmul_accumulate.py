"""Calls of the CUDA kernels of matmul_accumulate by tests/simt/programs/matmul_accumulate.cpp, and expected results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from support import simt
from support.accuracy import assert_same_bits
from support.fp16_accumulation import HOPPER, Fp16Accumulation
from vitfast.formats import FloatFormat
from vitfast.ops.rounding import float_rounding

FP16 = FloatFormat.fp16()


@dataclass(frozen=True)
class AccumulateCase:
    """One call.

    Attributes:
        x: ``[rows, K]``, float32.
        weight: ``[columns, K]``.
        chunk: products that are summed before the accumulator is rounded; None: all K.
        format: the accumulator's.
        rounding: the accumulator's.
    """

    x: Tensor
    weight: Tensor
    chunk: int | None
    format: FloatFormat = FP16
    rounding: str = "nearest_even"

    def run(
        self, *, variant: str = "plain", order: str = "forward", program: str | Path = "matmul_accumulate"
    ) -> dict[str, Tensor]:
        """Returns ``out`` [rows, columns]."""
        (rows, depth), columns = self.x.shape, self.weight.shape[0]
        options = {
            "unit": "multiply_add",
            "rows": rows,
            "columns": columns,
            "depth": depth,
            "chunk": self.chunk or max(depth, 1),
            "rounding": ",".join(map(str, self._raw())),
        }
        outputs = {"out": ((rows, columns), torch.float32)}
        inputs = {"x": self.x, "weight": self.weight}
        return simt.run(program, inputs, outputs, options, variant=variant, order=order)

    def check(self, results: dict[str, Tensor]) -> None:
        """Holds the results against the CPU's operator, bit by bit.

        Raises:
            AssertionError: a bit differs.
        """
        expected = torch.ops.vitfast.matmul_accumulate(self.x, self.weight, self._raw(), self.chunk or 0)
        assert_same_bits(results["out"], expected)

    def _raw(self) -> list[int]:
        return float_rounding(self.format, self.rounding)


def random_accumulate(rows: int, columns: int, depth: int, chunk: int | None, **options: object) -> AccumulateCase:
    """Normally distributed matrices."""
    return AccumulateCase(torch.randn(rows, depth), torch.randn(columns, depth), chunk, **options)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Fp16AccumulationCase:
    """One call.

    Attributes:
        x: ``[rows, K]``, float16, K a multiple of 8.
        weight: ``[columns, K]``.
        chunk: products that the unit sums; None: all K.
        rounds: the accumulators, to float16.
        model: of the unit.
    """

    x: Tensor
    weight: Tensor
    chunk: int | None
    rounds: bool = False
    model: Fp16Accumulation = HOPPER

    def run(
        self, *, variant: str = "plain", order: str = "forward", program: str | Path = "matmul_accumulate"
    ) -> dict[str, Tensor]:
        """Returns ``out`` [rows, columns] and, but for a GPU, ``bank_conflicts`` [1]."""
        (rows, depth), columns = self.x.shape, self.weight.shape[0]
        options = {
            "unit": "tensor_core",
            "rows": rows,
            "columns": columns,
            "depth": depth,
            "chunk": self._chunk(),
            "rounds": int(self.rounds),
        }
        outputs = {"out": ((rows, columns), torch.float32)}
        if variant != "cuda":
            outputs["bank_conflicts"] = ((1,), torch.int64)
        inputs = {"x": self.x, "weight": self.weight}
        return simt.run(program, inputs, outputs, options, variant=variant, order=order)

    def check(self, results: dict[str, Tensor]) -> None:
        """Holds the results against the model, bit by bit.

        Raises:
            AssertionError: a bit differs.
        """
        assert_same_bits(results["out"], self.model.product(self.x, self.weight, self._chunk(), rounds=self.rounds))

    def _chunk(self) -> int:
        return self.chunk or max(self.x.shape[1] + 15, 16) // 16 * 16


def random_fp16_accumulation(
    rows: int, columns: int, depth: int, chunk: int | None, **options: object
) -> Fp16AccumulationCase:
    """Normally distributed matrices."""
    x, weight = torch.randn(rows, depth).half(), torch.randn(columns, depth).half()
    return Fp16AccumulationCase(x, weight, chunk, **options)  # type: ignore[arg-type]
