"""From the options that name a number format to what ``vitfast.quantize_`` takes."""

from __future__ import annotations

from typing import Any

from vitfast.config.schema import NumberFormatOptions
from vitfast.errors import UserError
from vitfast.quantization.configs import QuantizationConfig
from vitfast.quantization.named_configs import named_config

_FLOAT32 = "FP32"


def number_format(options: NumberFormatOptions, prefix: str = "") -> QuantizationConfig:
    """Makes the configuration of the named format.

    Args:
        options: with a ``format``.
        prefix: what stands before their names, for messages.

    Raises:
        UserError: there is no such format, or an option does not go with it.
    """
    assert options.format is not None
    names = ("numerics", "backend", "semantics", "round_results", "activations", "clip_gradients")
    given = {name: getattr(options, name, None) for name in names}
    try:
        return named_config(options.format, **given)
    except UserError as error:
        raise UserError(f"{prefix}format={options.format}: {error}") from error


def format_overrides(options: NumberFormatOptions, prefix: str = "") -> dict[str, QuantizationConfig | None] | None:
    """Makes the configurations of layers that have another format; None where there are no such layers.

    Args:
        options: whose ``overrides`` are ``PATTERN=FORMAT``; they share ``numerics``, ``backend`` and ``semantics``
            where their format has these.
        prefix: as in ``number_format``.

    Raises:
        UserError: one has another form, or names no format.
    """
    overrides: dict[str, QuantizationConfig | None] = {}
    for text in options.overrides:
        pattern, equals, name = (part.strip() for part in text.partition("="))
        if not pattern or not equals or not name:
            raise UserError(f"{prefix}overrides: {text!r} must be PATTERN=FORMAT, for example head=FP32")
        try:
            overrides[pattern] = None if name.upper() == _FLOAT32 else _shared(name, options)
        except UserError as error:
            raise UserError(f"{prefix}overrides: {text!r}: {error}") from error
    return overrides or None


def _shared(name: str, options: NumberFormatOptions) -> QuantizationConfig:
    config = named_config(name)
    shared: dict[str, Any] = {
        option: getattr(options, option)
        for option in ("numerics", "backend", "semantics")
        if getattr(options, option) is not None and hasattr(config, option)
    }
    return named_config(name, **shared)
