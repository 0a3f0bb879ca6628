"""Rounding by QPyTorch's kernels, for comparison: the same numbers."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vitfast.errors import UserError
from vitfast.ops.rounding import StraightThrough
from vitfast.quantization.rounders import FixedRounder, FloatRounder, mask_gradient


@dataclass(frozen=True)
class QtorchRounder:
    """Calls ``qtorch.quant``, which compiles itself when it is first imported and runs on one CPU thread."""

    like: FloatRounder | FixedRounder  # the equivalent rounding of vitfast

    @property
    def limits(self) -> tuple[float, float]:
        return self.like.limits

    def __call__(self, x: Tensor) -> Tensor:
        """Rounds ``x`` of any shape, float32; raises a UserError if qtorch cannot be imported."""
        quant, like = _import_qtorch(), self.like
        if isinstance(like, FloatRounder):
            like.report_non_finite(x)
            round_, bits = quant.float_quantize, (like.format.exponent_bits, like.format.mantissa_bits)
        else:
            round_, bits = quant.fixed_point_quantize, (like.word_length, like.fraction_length)
        if like.clip_gradients:
            x = mask_gradient(x, *self.limits)
        return StraightThrough.apply(x, round_(x.detach().contiguous(), *bits, rounding="nearest"))


def _import_qtorch() -> Any:
    try:
        return importlib.import_module("qtorch.quant")
    except (ImportError, RuntimeError, OSError) as error:  # its extension failed to compile
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise UserError(
            f"backend='qtorch' cannot import qtorch.quant ({reason}); it "
            "needs `pip install qtorch`, a C++ compiler, and ninja on the PATH; backend='vitfast' computes the same"
        ) from error
