"""Quantization configurations from the options that name a number format."""

from __future__ import annotations

from typing import Any

from vitfast.config.schema import NumberFormatOptions
from vitfast.errors import UserError
from vitfast.quantization.configs import QuantizationConfig
from vitfast.quantization.named_configs import named_config

_FLOAT32 = "FP32"


def number_format(options: NumberFormatOptions, prefix: str = "") -> QuantizationConfig:
    """Returns the configuration of the named format.

    Args:
        options: with a ``format``.
        prefix: of the option names in messages.

    Raises:
        UserError: the format does not exist, or does not support an option.
    """
    assert options.format is not None
    names = ("numerics", "backend", "semantics", "round_results", "activations", "clip_gradients")
    given = {name: getattr(options, name, None) for name in names}
    try:
        return named_config(options.format, **given)
    except UserError as error:
        raise UserError(f"{prefix}format={options.format}: {error}") from error


def format_overrides(options: NumberFormatOptions, prefix: str = "") -> dict[str, QuantizationConfig | None] | None:
    """Returns the configurations of layers with another format; None if there are none.

    Args:
        options: with ``overrides`` of the form ``PATTERN=FORMAT``; ``numerics``, ``backend`` and ``semantics`` apply
            to the formats that support them.
        prefix: as in ``number_format``.

    Raises:
        UserError: an override has another form, or its format does not exist.
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
