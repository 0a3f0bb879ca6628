"""Configurations of ``vitfast.quantize_``: frozen dataclasses named after the numerics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vitfast.errors import UserError
from vitfast.formats import FloatFormat
from vitfast.ops.quantize_fixed import check_fixed_lengths
from vitfast.quantization.arithmetic import AccumulatedArithmetic, Arithmetic, RoundedArithmetic
from vitfast.quantization.block_rounder import MX_BLOCK, BlockRounder
from vitfast.quantization.int8_arithmetic import Int8Arithmetic
from vitfast.quantization.qtorch_rounder import QtorchRounder
from vitfast.quantization.rounders import FixedRounder, FloatRounder, Rounder

Numerics = Literal["ieee", "qtorch"]
Backend = Literal["vitfast", "qtorch"]
Step = Literal["prepare", "convert"]

_FORMAT_NAMES = ("fp16", "bf16", "tf32", "fp8_e4m3fn", "fp8_e5m2", "fp6_e3m2", "fp6_e2m3", "fp4_e2m1")
# OCP Microscaling: blocks of 32 numbers share a scale
MX_FORMATS = {
    "mxfp8_e4m3": "fp8_e4m3fn",
    "mxfp8_e5m2": "fp8_e5m2",
    "mxfp6_e3m2": "fp6_e3m2",
    "mxfp6_e2m3": "fp6_e2m3",
    "mxfp4": "fp4_e2m1",
}


@dataclass(frozen=True, kw_only=True)
class QuantizationConfig:
    """Base class of all configurations.

    Attributes:
        clip_gradients: whether values beyond the largest one get no gradient in quantization-aware training; otherwise
            every gradient passes straight through.
    """

    clip_gradients: bool = False

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is Literal and getattr(self, name) not in get_args(kind):
                choices = ", ".join(map(repr, get_args(kind)))
                raise UserError(f"{name} must be one of {choices}; got {getattr(self, name)!r}")

    def arithmetic(self) -> Arithmetic:
        """Returns the arithmetic of the layers."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class _RoundingConfig(QuantizationConfig):
    """Base class of formats to which every operand is rounded.

    Attributes:
        semantics: ``"documented"``: activations are rounded before and after conversion; ``"legacy_convert"``: after
            conversion only the results of residual and embedding additions are rounded, as myrtle-vision evaluates, and
            LayerNorms' gammas are first rounded by the conversion, not in training.
        backend: ``"vitfast"``; or ``"qtorch"``: QPyTorch's kernels, which are slow, for comparison; needs
            ``numerics="qtorch"``.
    """

    semantics: Literal["documented", "legacy_convert"] = "documented"
    backend: Backend = "vitfast"

    numerics = "qtorch"  # fixed point has no other; a field of the other formats

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backend == "qtorch" and self.numerics != "qtorch":
            raise UserError("backend='qtorch' computes QPyTorch's numbers; give numerics='qtorch' with it")

    def _rounded(self, ours: FloatRounder | FixedRounder | BlockRounder, round_results: bool) -> RoundedArithmetic:
        rounder: Rounder = ours
        if self.backend == "qtorch" and not isinstance(ours, BlockRounder):
            rounder = QtorchRounder(ours)
        return RoundedArithmetic(rounder, round_results, self.semantics == "legacy_convert")

    def _float_rounder(self, format: FloatFormat) -> FloatRounder:
        if self.numerics == "ieee":
            return FloatRounder(format, "nearest_even", self.clip_gradients)
        theirs = FloatFormat.qtorch(format.exponent_bits, format.mantissa_bits)
        return FloatRounder(theirs, "qtorch", self.clip_gradients)


@dataclass(frozen=True)
class FP16_16Config(_RoundingConfig):
    """Operands and stored results of linear layers, LayerNorms and additions in fp16; GEMMs accumulate in float32.

    Attributes:
        numerics: ``"ieee"``: half precision (ties to even, overflow to infinity); ``"qtorch"``: as QPyTorch 0.3.0
            (ties away from zero, no infinity and no NaN, maximum 131008).
        accumulate: ``"fp16"``: the accumulators of linear layers are fp16, too, see ``vitfast.ops.matmul_accumulate``.
        chunk: with ``accumulate="fp16"``, the number of products summed in float32 before the accumulator is rounded;
            None for all of them.

    Raises:
        UserError: an option is unknown, ``chunk`` is not positive or given without ``accumulate="fp16"``.
    """

    numerics: Numerics = "ieee"
    accumulate: Literal["fp32", "fp16"] = "fp32"
    chunk: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunk is not None and self.accumulate == "fp32":
            raise UserError("chunk requires accumulate='fp16'")
        _check_count("chunk", self.chunk, "the whole sum")

    def arithmetic(self) -> Arithmetic:
        accumulator = self._float_rounder(FloatFormat.fp16())
        rounded = self._rounded(accumulator, round_results=True)
        if self.accumulate == "fp32":
            return rounded
        return AccumulatedArithmetic(
            rounded.rounding, True, rounded.legacy_convert, accumulator=accumulator, chunk=self.chunk
        )


@dataclass(frozen=True)
class FP16_32Config(_RoundingConfig):
    """Operands of linear layers and LayerNorms in fp16; results stay float32. Attributes as ``FP16_16Config``."""

    numerics: Numerics = "ieee"

    def arithmetic(self) -> Arithmetic:
        return self._rounded(self._float_rounder(FloatFormat.fp16()), round_results=False)


@dataclass(frozen=True)
class TF32Config(_RoundingConfig):
    """Operands of linear layers and LayerNorms in TF32; results stay float32. Attributes as ``FP16_16Config``."""

    numerics: Numerics = "ieee"

    def arithmetic(self) -> Arithmetic:
        return self._rounded(self._float_rounder(FloatFormat.tf32()), round_results=False)


@dataclass(frozen=True)
class FloatConfig(_RoundingConfig):
    """Operands in any floating-point format.

    Attributes:
        format: a ``FloatFormat``, or the name of a preset: ``"fp8_e4m3fn"`` for ``FloatFormat.fp8_e4m3fn()``;
            or of a Microscaling format, ``"mxfp4"``, which is ``format="fp4_e2m1", block=32``.
        round_results: whether results are rounded, too, as FP16_16 does.
        numerics: ``"qtorch"`` uses the bit counts of the format and QPyTorch's rounding rules.
        block: number of neighbours that share a power-of-two scale (OCP Microscaling: 32); None for no scales.

    Raises:
        UserError: the format does not exist, or ``block`` is not supported with the other fields.
    """

    format: FloatFormat | str
    round_results: bool = False
    numerics: Numerics = "ieee"
    block: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.format, str):
            if self.format in MX_FORMATS:
                if self.block not in (None, MX_BLOCK):
                    raise UserError(f"{self.format} has blocks of {MX_BLOCK}; leave out block={self.block!r}")
                object.__setattr__(self, "block", MX_BLOCK)
                object.__setattr__(self, "format", MX_FORMATS[self.format])
            if self.format not in _FORMAT_NAMES:
                known = ", ".join((*_FORMAT_NAMES, *MX_FORMATS))
                raise UserError(
                    f"unknown format {self.format!r}; it must be one of {known}, or a FloatFormat such as "
                    "FloatFormat.ieee(5, 7)"
                )
            object.__setattr__(self, "format", getattr(FloatFormat, self.format)())
        if not isinstance(self.format, FloatFormat):
            raise UserError(f"format must be a FloatFormat or the name of one; got {self.format!r}")
        _check_count("block", self.block, "numbers without scales")
        if self.block is not None and (self.numerics != "ieee" or self.round_results):
            raise UserError("block requires numerics='ieee' and round_results=False")
        self.arithmetic()  # reports an unsupported format such as (8, 23) here rather than in a layer

    def arithmetic(self) -> Arithmetic:
        assert isinstance(self.format, FloatFormat)
        if self.block is not None:
            return self._rounded(BlockRounder(self.format, self.block, self.clip_gradients), round_results=False)
        return self._rounded(self._float_rounder(self.format), self.round_results)


@dataclass(frozen=True)
class FixedConfig(_RoundingConfig):
    """Operands in fixed point, see ``quantize_fixed``.

    Attributes:
        word_length: bits of a number; myrtle-vision's ``FixedPoint11`` has 11.
        fraction_length: bits after the binary point.
        round_results: whether results are rounded, too, as FP16_16 does.

    Raises:
        UserError: a length is out of range.
    """

    word_length: int
    fraction_length: int
    round_results: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            check_fixed_lengths(self.word_length, self.fraction_length)
        except (TypeError, ValueError) as error:
            raise UserError(str(error)) from error

    def arithmetic(self) -> Arithmetic:
        rounder = FixedRounder(self.word_length, self.fraction_length, self.clip_gradients)
        return self._rounded(rounder, self.round_results)


@dataclass(frozen=True)
class Int8Config(QuantizationConfig):
    """Linear layers and convolutions as 8-bit integer GEMMs; everything else in float32.

    Attributes:
        activations: ``"dynamic"``: one scale per token (per image in a convolution); ``"calibrated"``: one per tensor,
            from the range that ``calibrate`` observes.
    """

    activations: Literal["dynamic", "calibrated"] = "dynamic"

    def arithmetic(self) -> Arithmetic:
        return Int8Arithmetic(self.activations == "calibrated", self.clip_gradients)


@dataclass(frozen=True)
class QATConfig:
    """Quantization-aware training: prepare, train, convert.

    Attributes:
        base: the numerics; in the second step None, or the configuration that was prepared.
        step: ``"prepare"``: weights stay float32 and are rounded in each forward pass, gradients pass straight through;
            ``"convert"``: weights (and LayerNorms' gammas) are rounded permanently, activations as before.

    Raises:
        UserError: the step is unknown, or ``base`` is missing in the first step.
    """

    base: QuantizationConfig | None = None
    step: Step = "prepare"

    def __post_init__(self) -> None:
        if self.step not in ("prepare", "convert"):
            raise UserError(f"step must be 'prepare' or 'convert'; got {self.step!r}")
        if self.base is None and self.step == "prepare":
            raise UserError("step='prepare' needs a base, for example QATConfig(FP16_16Config(), step='prepare')")
        if self.base is not None and not isinstance(self.base, QuantizationConfig):
            raise UserError(f"base must be a configuration such as FP16_32Config(); got {self.base!r}")


def _check_count(name: str, value: Any, otherwise: str) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise UserError(f"{name} must be a positive integer, or None for {otherwise}; got {value!r}")
