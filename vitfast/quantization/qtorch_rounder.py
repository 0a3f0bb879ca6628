"""Rounding by QPyTorch's kernels, for comparison: the same numbers."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vitfast.errors import UserError
from vitfast.quantization.rounders import FixedRounder, FloatRounder, mask_gradient


@dataclass(frozen=True)
class QtorchRounder:
    """Calls ``qtorch.quant``, which compiles itself when it is first imported and runs on one CPU thread.

    Attributes:
        like: the equivalent rounding of vitfast.
    """

    like: FloatRounder | FixedRounder

    @property
    def limits(self) -> tuple[float, float]:
        """The smallest and the largest value."""
        return self.like.limits

    def __call__(self, x: Tensor) -> Tensor:
        """Rounds ``x`` of any shape, float32.

        Raises:
            UserError: qtorch cannot be imported.
        """
        if isinstance(self.like, FloatRounder):
            self.like.report_non_finite(x)
            bits = self.like.format.exponent_bits, self.like.format.mantissa_bits
        else:
            bits = self.like.word_length, self.like.fraction_length
        if self.like.clip_gradients:
            x = mask_gradient(x, *self.limits)
        rounded: Tensor = _QtorchRound.apply(x, bits, isinstance(self.like, FloatRounder))
        return rounded


class _QtorchRound(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: tuple[int, int], is_float: bool) -> Tensor:
        quant = _import_qtorch()
        round_ = quant.float_quantize if is_float else quant.fixed_point_quantize
        return round_(x.contiguous(), *bits, rounding="nearest")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad, None, None


def _import_qtorch() -> Any:
    try:
        return importlib.import_module("qtorch.quant")
    except (ImportError, RuntimeError, OSError) as error:  # its extension failed to compile
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise UserError(
            f"backend='qtorch' cannot import qtorch.quant ({reason}); it "
            "needs `pip install qtorch`, a C++ compiler, and ninja on the PATH; backend='vitfast' computes the same"
        ) from error
