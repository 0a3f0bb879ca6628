"""What a quantized model computes in, as far as there are fast kernels for it."""

from __future__ import annotations

from torch import nn

from vitfast.formats import FloatFormat
from vitfast.inference.ir import Precision
from vitfast.inference.lowering.not_recognised import NotRecognised
from vitfast.quantization.arithmetic import Arithmetic, NoArithmetic, RoundedArithmetic
from vitfast.quantization.int8_arithmetic import Int8Arithmetic
from vitfast.quantization.quantized_module import QuantizedModule
from vitfast.quantization.rounders import FloatRounder


def plain_class(module: nn.Module, name: str) -> type[nn.Module]:
    """Returns a module's class; of a quantized counterpart its unquantized class.

    Raises:
        NotRecognised: the module is quantized to what has no fast kernel.
    """
    if not isinstance(module, QuantizedModule):
        return type(module)
    precision_of(module, name)
    bases = (cls for cls in type(module).__mro__ if issubclass(cls, nn.Module))
    return next(cls for cls in bases if not issubclass(cls, QuantizedModule))


def precision_of(module: nn.Module, name: str) -> Precision | None:
    """Returns what a quantized module computes in; None for one that is not quantized.

    Raises:
        NotRecognised: there is no fast kernel for it.
    """
    if not isinstance(module, QuantizedModule):
        return None
    quantization = module.quantization
    if quantization.mode != "quantized":
        raise NotRecognised(name, f"its quantization is switched to {quantization.mode!r}")
    if quantization.config is None:
        return "fp32"
    precision = _precision(quantization.arithmetic)
    if precision is None:
        raise NotRecognised(name, f"is quantized with {quantization.config}, which has no fast kernel")
    return precision


def quantized_precisions(model: nn.Module) -> set[str]:
    """Returns what the quantized layers of a model compute in, as far as there are fast kernels for it."""
    found: set[str] = set()
    for module in model.modules():
        if isinstance(module, QuantizedModule) and module.quantization.config is not None:
            found.add(_precision(module.quantization.arithmetic) or "other")
    return found


def _precision(arithmetic: Arithmetic) -> Precision | None:
    if isinstance(arithmetic, NoArithmetic):
        return "fp32"
    if isinstance(arithmetic, Int8Arithmetic):
        return None if arithmetic.calibrated else "int8"
    if type(arithmetic) is RoundedArithmetic and isinstance(arithmetic.rounder, FloatRounder):
        is_fp16_32 = (
            arithmetic.rounder.format == FloatFormat.fp16()
            and arithmetic.rounder.rounding == "nearest_even"
            and not arithmetic.round_results
            and not arithmetic.legacy_convert
        )
        return "fp16_32" if is_fp16_32 else None
    return None
