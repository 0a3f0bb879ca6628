"""The CUDA kernel of matmul_accumulate on tensor cores, run by tests/simt/programs/matmul_accumulate.cpp."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from support import simt
from support.accuracy import assert_same_bits
from support.fp16_accumulation import HOPPER, Fp16Accumulation


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
