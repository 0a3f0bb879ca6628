"""The quantization of a model as JSON data, which checkpoints store."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from vitfast.errors import UserError
from vitfast.formats import FloatFormat
from vitfast.quantization.configs import QuantizationConfig
from vitfast.quantization.named_configs import CONFIGS
from vitfast.quantization.quantize import configurations, convert, is_converted, prepare, quantized_modules

_FORMAT_VERSION = 1


def quantization_record(model: nn.Module) -> dict[str, Any] | None:
    """Returns the quantization of ``model`` as JSON data: configurations by module, state and calibrated ranges.

    Returns None if the model is not quantized.
    """
    quantized = quantized_modules(model)
    if not quantized:
        return None
    names: dict[QuantizationConfig, list[str]] = {}
    for name, config in configurations(model).items():
        names.setdefault(config, []).append(name)
    ranges = {
        name: module.get_buffer("activation_range").tolist()
        for name, module in quantized.items()
        if module.quantization.calibrated
    }
    return {
        "format_version": _FORMAT_VERSION,
        "converted": is_converted(model),
        "configs": [
            {"config": {"name": type(config).__name__, **asdict(config)}, "modules": modules}
            for config, modules in names.items()
        ],
        "activation_ranges": ranges,
    }


def quantize_from_record(model: nn.Module, record: dict[str, Any]) -> None:
    """Quantizes a model like the one that was recorded.

    Weights may be loaded before or after: a converted model rounds the weights that it loads.

    Args:
        model: not quantized, of the architecture of the record.
        record: from ``quantization_record``.

    Raises:
        UserError: the record is damaged, from a newer vitfast or another model; or as ``quantize_``.
    """
    if not isinstance(record, dict) or record.get("format_version") != _FORMAT_VERSION:
        raise UserError(f"no quantization record of format version {_FORMAT_VERSION}; update vitfast or quantize again")
    try:
        _quantize(model, record)
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError) as error:
        raise UserError(f"the quantization record is damaged: {error!r}") from error


def _quantize(model: nn.Module, record: dict[str, Any]) -> None:
    chosen = {name: _from_data(entry["config"]) for entry in record["configs"] for name in entry["modules"]}
    ranges = {name: torch.tensor(bounds).view(2) for name, bounds in record["activation_ranges"].items()}
    for name, bounds in ranges.items():
        if not bounds.isfinite().all():
            raise UserError(f"the quantization record is damaged: the activation range of {name} is not finite")
    unknown = sorted((chosen.keys() | ranges.keys()) - dict(model.named_modules()).keys())
    if unknown:
        raise UserError(f"the quantization record is of another model: there is no module {', '.join(unknown[:3])}")
    prepare(model, chosen)
    modules = quantized_modules(model)
    for name, bounds in ranges.items():
        observed: Tensor = modules[name].activation_range  # type: ignore[assignment]
        observed.copy_(bounds)
        modules[name].quantization.calibrated = True
    if record["converted"]:
        convert(model)


def _from_data(data: dict[str, Any]) -> QuantizationConfig:
    fields = dict(data)
    name = fields.pop("name")
    if name not in CONFIGS:
        raise UserError(f"unknown quantization {name!r}; known are {', '.join(CONFIGS)}")
    if "format" in fields:
        fields["format"] = FloatFormat(**fields["format"])
    return CONFIGS[name](**fields)
