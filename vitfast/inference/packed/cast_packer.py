"""Turns the tensors of a description into layers for a GPU: nothing is packed, weights are cast to the precision."""

from __future__ import annotations

import torch

from vitfast.inference.packed.cast_linear import CastLinear
from vitfast.inference.packed.packer import Packer

_STREAM = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp16_32": torch.float32}


class CastPacker(Packer):
    """Makes ``CastLinear``s of what ``Packer`` takes, but for ``"int8"``."""

    image_by_image = False
    _layer = CastLinear

    @property
    def stream_dtype(self) -> torch.dtype:
        """The precision's type, or float32 for ``"fp16_32"``."""
        return _STREAM[self.precision]

    def has(self, operator: str) -> bool:
        """No: the operators on packed weights are the CPU's."""
        return False
