"""Turns the tensors of a description into layers for a GPU: nothing is packed, weights are cast to the precision."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitfast.inference.description import Precision
from vitfast.inference.packed.cast_linear import CastLinear
from vitfast.inference.packed.normalization import Normalization
from vitfast.inference.packed.packed_linear import PackedLinear, SourceRows
from vitfast.inference.packed.packer import Packer

_STREAM = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp16_32": torch.float32}


class CastPacker(Packer):
    """Makes ``CastLinear``s; tokens flow in the precision's type, or in float32 for ``"fp16_32"``.

    Args:
        source: as in ``Packer``.
        precision: as in ``Packer``; not ``"int8"``.
        device: as in ``Packer``.
        normalization: as in ``Packer``.
    """

    image_by_image = False

    def __init__(
        self,
        source: nn.Module,
        precision: Precision,
        device: torch.device,
        normalization: Normalization | None = None,
    ) -> None:
        super().__init__(source, precision, device, normalization)
        self.stream_dtype = _STREAM[precision]

    def has(self, operator: str) -> bool:
        """No: the operators on packed weights are the CPU's."""
        return False

    def _pack(
        self,
        weight: Tensor,
        bias: Tensor | None,
        precision: Precision,
        rows: tuple[SourceRows, ...],
        column_order: Tensor | None = None,
    ) -> PackedLinear:
        return CastLinear(weight, bias, precision, rows, column_order)
