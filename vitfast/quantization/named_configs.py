"""Names of number formats on the command line and in recipes."""

from __future__ import annotations

import difflib
import re
from dataclasses import fields
from typing import Any

from vitfast.errors import UserError
from vitfast.formats import FloatFormat
from vitfast.quantization.block_rounder import MX_BLOCK
from vitfast.quantization.configs import (
    MX_FORMATS,
    FixedConfig,
    FloatConfig,
    FP16_16Config,
    FP16_32Config,
    Int8Config,
    QuantizationConfig,
    TF32Config,
)

# name -> class and the fields that the name determines
_NAMED: dict[str, tuple[type[QuantizationConfig], dict[str, Any]]] = {
    "FP16_16": (FP16_16Config, {}),
    "FP16_32": (FP16_32Config, {}),
    "TF32": (TF32Config, {}),
    "BF16": (FloatConfig, {"format": "bf16", "block": None}),
    "FP8_E4M3FN": (FloatConfig, {"format": "fp8_e4m3fn", "block": None}),
    "FP8_E5M2": (FloatConfig, {"format": "fp8_e5m2", "block": None}),
    "FP6_E3M2": (FloatConfig, {"format": "fp6_e3m2", "block": None}),
    "FP6_E2M3": (FloatConfig, {"format": "fp6_e2m3", "block": None}),
    "FP4_E2M1": (FloatConfig, {"format": "fp4_e2m1", "block": None}),
    **{name.upper(): (FloatConfig, {"format": name, "block": MX_BLOCK}) for name in MX_FORMATS},
    "INT8": (Int8Config, {}),
    "PyTorchINT8": (Int8Config, {"activations": "calibrated"}),
    # myrtle-vision: 11 bits, 2, 3 or 4 of them before the binary point
    "FixedPoint11Integral2": (FixedConfig, {"word_length": 11, "fraction_length": 9}),
    "FixedPoint11Integral3": (FixedConfig, {"word_length": 11, "fraction_length": 8}),
    "FixedPoint11Integral4": (FixedConfig, {"word_length": 11, "fraction_length": 7}),
}
# every configuration, by the name of its class
CONFIGS = {make.__name__: make for make, _ in _NAMED.values()}
_ANY_FLOAT, _ANY_FIXED = re.compile(r"float_(\d+)_(\d+)"), re.compile(r"fixed_(\d+)_(-?\d+)")
_FLOAT32 = ("fp32", "float32")


def named_config(name: str, **options: Any) -> QuantizationConfig:
    """Returns the configuration of a named format; case does not matter.

    Args:
        name: one of ``format_names()``, or ``FLOAT_e_m`` (any IEEE format of e exponent and m mantissa bits) or
            ``FIXED_w_f`` (w bits, f of them after the binary point).
        **options: further fields of the configuration: ``numerics``, ``semantics``, ``round_results`` …; None for the
            default.

    Raises:
        UserError: the format does not exist, or the configuration does not have an option or rejects its value.
    """
    make, fixed = _look_up(name)
    given = {option: value for option, value in options.items() if value is not None}
    allowed = {field.name for field in fields(make)} - (
        {"format", "block", "word_length", "fraction_length"} & fixed.keys()
    )
    for option in given:
        if option not in allowed:
            known = ", ".join(sorted(allowed - {"format"}))
            raise UserError(f"the format {name} has no option {option}; its options are {known}")
    return make(**{**fixed, **given})


def format_names() -> list[str]:
    """Returns the names that ``named_config`` accepts, except those with bit counts."""
    return list(_NAMED)


def format_name(config: QuantizationConfig) -> str:
    """Returns the shortest name of a configuration, without its other fields: ``FP16_32``."""
    for name, (make, fixed) in _NAMED.items():
        named: QuantizationConfig = make(**fixed)
        if type(config) is make and all(getattr(config, field) == getattr(named, field) for field in fixed):
            if isinstance(config, Int8Config) and config.activations == "calibrated":
                return "INT8, calibrated"
            return name
    if isinstance(config, FixedConfig):
        return f"FIXED_{config.word_length}_{config.fraction_length}"
    if isinstance(config, FloatConfig) and isinstance(config.format, FloatFormat):
        blocks = "" if config.block is None else f", blocks of {config.block}"
        return f"FLOAT_{config.format.exponent_bits}_{config.format.mantissa_bits}{blocks}"
    return repr(config)


def _look_up(name: str) -> tuple[type[QuantizationConfig], dict[str, Any]]:
    lowered = {known.lower(): known for known in _NAMED}
    wanted = name.lower()
    if wanted in lowered:
        return _NAMED[lowered[wanted]]
    if bits := _ANY_FLOAT.fullmatch(wanted):
        try:
            return FloatConfig, {"format": FloatFormat.ieee(int(bits[1]), int(bits[2]))}
        except ValueError as error:
            raise UserError(f"format {name}: {error}") from error
    if bits := _ANY_FIXED.fullmatch(wanted):
        return FixedConfig, {"word_length": int(bits[1]), "fraction_length": int(bits[2])}
    if wanted in _FLOAT32:
        raise UserError(f"format {name} rounds nothing; do not quantize the model")
    longer = [known for known in lowered if known.startswith(wanted)]
    near = longer or difflib.get_close_matches(wanted, lowered, n=1)
    hint = f"did you mean {lowered[near[0]]}? " if near else ""
    raise UserError(
        f"there is no format {name!r}; {hint}there are {', '.join(_NAMED)}, FLOAT_e_m (any exponent and mantissa bits) "
        "and FIXED_w_f (any word and fraction length)"
    )
