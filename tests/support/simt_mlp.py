"""The CUDA kernel of the MLP, run by tests/simt/programs/mlp.cpp, and what its results are held against."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from support import plain, simt
from support.tolerance import FORWARD_FACTOR, assert_as_accurate


@dataclass(frozen=True)
class MlpCase:
    """One call; float16 or bfloat16.

    Attributes:
        x: ``[rows, C]``.
        fc1_weight: ``[F, C]``.
        fc2_weight: ``[C, F]``.
        fc1_bias: ``[F]`` or None.
        fc2_bias: ``[C]`` or None.
        residual: ``[rows, C]`` or None.
    """

    x: Tensor
    fc1_weight: Tensor
    fc2_weight: Tensor
    fc1_bias: Tensor | None = None
    fc2_bias: Tensor | None = None
    residual: Tensor | None = None

    def run(
        self,
        *,
        variant: str = "plain",
        order: str = "forward",
        program: str | Path = "mlp",
        large_tiles: bool = False,
    ) -> dict[str, Tensor]:
        """Returns ``out`` [rows, C] and ``bank_conflicts`` [1]; ``large_tiles``: of 128 rows, which need many rows."""
        (rows, channels), hidden = self.x.shape, self.fc1_weight.shape[0]
        outputs = {"out": ((rows, channels), self.x.dtype), "bank_conflicts": ((1,), torch.int64)}
        if variant == "cuda":
            del outputs["bank_conflicts"]
        options = {
            "rows": rows,
            "channels": channels,
            "hidden": hidden,
            "large_tiles": int(large_tiles),
        }
        return simt.run(program, self._tensors(), outputs, options, element=self.x.dtype, variant=variant, order=order)

    def check(self, results: dict[str, Tensor]) -> None:
        """Holds the result against float64, by the tolerance rule.

        Raises:
            AssertionError: an element is less accurate than it should be, or was not written.
        """
        exact = plain.mlp(**self._arguments(torch.float64))
        same = plain.mlp(**self._arguments(self.x.dtype))
        assert_as_accurate(results["out"], same, exact, factor=FORWARD_FACTOR, name="out")

    def _tensors(self) -> dict[str, Tensor]:
        every = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in every.items() if tensor is not None}

    def _arguments(self, dtype: torch.dtype) -> dict[str, Tensor | None]:
        missing: dict[str, Tensor | None] = {"fc1_bias": None, "fc2_bias": None}
        return missing | {name: tensor.to(dtype) for name, tensor in self._tensors().items()}


def random_mlp(
    rows: int,
    channels: int,
    hidden: int,
    dtype: torch.dtype = torch.float16,
    *,
    biases: bool = True,
    residual: bool = True,
) -> MlpCase:
    """Normally distributed inputs; hidden units are spread over both sides of zero."""

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape) * scale).to(dtype)

    return MlpCase(
        normal(rows, channels),
        normal(hidden, channels, scale=1.5 * channels**-0.5),
        normal(channels, hidden, scale=hidden**-0.5),
        normal(hidden, scale=0.5) if biases else None,
        normal(channels, scale=0.5) if biases else None,
        normal(rows, channels) if residual else None,
    )
