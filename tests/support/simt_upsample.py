"""The CUDA kernel of upsample_relations, run by tests/simt/programs/upsample_relations.cpp, and expected results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from support import plain, simt
from vitfast.layers import GridUpsample
from vitfast.ops.tolerance import FORWARD_FACTOR, assert_as_accurate

_ROWS = 4  # of the matrix, in a group


@dataclass(frozen=True)
class UpsampleCase:
    """One call.

    Attributes:
        x: ``[B, H, n, n]``, of any strides: the kernel sees the storage.
        matrix: ``[N, n]``, float32, of any strides.
        narrow: panels of 32 columns, as for an x that leaves no room for wider ones.
    """

    x: Tensor
    matrix: Tensor
    narrow: bool = False

    def run(
        self, *, variant: str = "plain", order: str = "forward", program: str | Path = "upsample_relations"
    ) -> dict[str, Tensor]:
        """Returns ``out`` [B, H, N, N]."""
        (images, heads, coarse, _), fine = self.x.shape, self.matrix.shape[0]
        options = {
            "images": images,
            "heads": heads,
            "fine": fine,
            "coarse": coarse,
            "offset": self.x.storage_offset(),
            "narrow": int(self.narrow),
            "matrix_row_stride": self.matrix.stride(0),
            "matrix_column_stride": self.matrix.stride(1),
        }
        strides = ("image_stride", "head_stride", "row_stride", "column_stride")
        options |= dict(zip(strides, self.x.stride(), strict=True))
        groups = -(-fine // _ROWS)
        outputs = {
            "out": ((images, heads, fine, fine), self.x.dtype),
            "counts": ((groups,), torch.int32),
        }
        inputs = {"x": _storage(self.x), "matrix": _storage(self.matrix)}
        return simt.run(program, inputs, outputs, options, element=self.x.dtype, variant=variant, order=order)

    def check(self, results: dict[str, Tensor]) -> None:
        """Holds the results against float64.

        Raises:
            AssertionError: they are not as accurate as torch's.
        """
        exact = plain.upsample_relations(self.x.double(), self.matrix.double())
        same = plain.upsample_relations(self.x.float(), self.matrix).to(self.x.dtype)
        magnitude = float(plain.upsample_relations(self.x.double().abs(), self.matrix.double().abs()).max())
        assert_as_accurate(results["out"], same, exact, factor=FORWARD_FACTOR, magnitude=magnitude)


def _storage(tensor: Tensor) -> Tensor:
    """All of a tensor's memory as one row."""
    return torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())  # type: ignore[call-overload]


def random_upsample(
    leading: tuple[int, int],
    matrix: Tensor | tuple[int, int],
    dtype: torch.dtype = torch.float32,
    *,
    narrow: bool = False,
) -> UpsampleCase:
    """Normally distributed relations of ``leading`` images and heads, and a matrix or the two grids it joins."""
    if isinstance(matrix, tuple):
        matrix = GridUpsample(*matrix).matrix
    return UpsampleCase(torch.randn(*leading, *[matrix.shape[1]] * 2).to(dtype), matrix, narrow)
