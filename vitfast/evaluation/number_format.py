"""Quantization configurations from the options that name a number format."""

from __future__ import annotations

from vitfast.config.schema import NumberFormatOptions
from vitfast.errors import UserError
from vitfast.quantization.configs import QuantizationConfig
from vitfast.quantization.named_configs import named_config


def number_format(options: NumberFormatOptions, prefix: str = "") -> QuantizationConfig:
    """Returns the configuration of ``options.format``; ``prefix`` precedes the option names in messages.

    Raises:
        UserError: the format does not exist, or does not support an option.
    """
    assert options.format is not None
    names = ("numerics", "backend", "semantics", "round_results", "activations", "clip_gradients")
    try:
        return named_config(options.format, **{name: getattr(options, name, None) for name in names})
    except UserError as error:
        raise UserError(f"{prefix}format={options.format}: {error}") from error


def format_overrides(options: NumberFormatOptions, prefix: str = "") -> dict[str, QuantizationConfig | None] | None:
    """Returns the configurations of layers with another format, ``options.overrides``; None if there are none.

    ``numerics``, ``backend`` and ``semantics`` apply to the formats that support them.

    Raises:
        UserError: an override has another form, or its format does not exist.
    """
    overrides: dict[str, QuantizationConfig | None] = {}
    for text in options.overrides:
        pattern, _, name = (part.strip() for part in text.partition("="))
        if not pattern or not name:
            raise UserError(f"{prefix}overrides: {text!r} must be PATTERN=FORMAT, for example head=FP32")
        if name.upper() == "FP32":
            overrides[pattern] = None
            continue
        try:
            config = named_config(name)
            shared = {o: getattr(options, o) for o in ("numerics", "backend", "semantics") if hasattr(config, o)}
            overrides[pattern] = named_config(name, **shared)
        except UserError as error:
            raise UserError(f"{prefix}overrides: {text!r}: {error}") from error
    return overrides or None
