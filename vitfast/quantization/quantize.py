"""The one verb of quantization."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import nn

from vitfast.errors import UserError
from vitfast.quantization.arithmetic import NoArithmetic
from vitfast.quantization.configs import QuantizationConfig
from vitfast.quantization.qat_config import QATConfig
from vitfast.quantization.quantized_module import LayerQuantization, QuantizedModule
from vitfast.quantization.twins import find_twin, lacks_twin, never_quantized, unseen_additions

Filter = Callable[[nn.Module, str], bool]
Overrides = Mapping[str, QuantizationConfig | None]


def quantize_(
    model: nn.Module,
    config: QuantizationConfig | QATConfig,
    filter_fn: Filter | None = None,
    *,
    overrides: Overrides | None = None,
) -> None:
    """Quantizes a model in place, after training or for quantization-aware training.

    Parameters stay float32 and keep their names, so that the same checkpoints load. Quantized modules compute in
    float32 under any autocast. What is rounded where is written in ``docs/numerics.md``.

    Args:
        model: from ``create_model``, timm, torchvision or of torch's own layers, with float32 parameters.
        config: ``FP16_16Config()``, ``FP16_32Config()``, ``TF32Config()``, ``Int8Config()``, ``FloatConfig(format)`` or
            ``FixedConfig(word_length, fraction_length)``: rounds weights for good and activations in each forward pass.
            ``QATConfig(base, step)``: the same in two steps, with training between them.
        filter_fn: ``filter_fn(module, name)`` says whether a module is quantized. It is asked for every linear layer,
            convolution, LayerNorm and attention, and for the blocks and models whose additions are stored. None: all.
        overrides: other configurations, None for float32, by name pattern: ``{"blocks.0.*": None, "head":
            Int8Config()}``. The first that matches counts; ``*`` matches dots, too.

    Raises:
        UserError: the configuration is none; the model is quantized already, or not prepared for ``"convert"``; its
            parameters are not float32; the filter or a pattern matches nothing; a layer is of an unknown class.
    """
    if isinstance(config, QATConfig) and config.step == "convert":
        if filter_fn is not None or overrides is not None:
            raise UserError("step='convert' takes no filter_fn and no overrides: what was prepared is converted")
        _convert(model, config.base)
        return
    base = config.base if isinstance(config, QATConfig) else config
    if not isinstance(base, QuantizationConfig):
        given = f"the class {base.__name__}" if isinstance(base, type) else repr(base)
        raise UserError(f"config must be a configuration such as vitfast.FP16_32Config(); got {given}")
    configs = _choose(model, base, filter_fn or (lambda module, name: True), overrides or {})
    prepare(model, configs)
    if not isinstance(config, QATConfig):
        _convert(model, None)


def quantized_modules(model: nn.Module) -> dict[str, QuantizedModule]:
    """Returns the quantized modules by name, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedModule)}


def prepare(model: nn.Module, configs: Mapping[str, QuantizationConfig], *, warn: bool = True) -> None:
    """Turns modules into their twins, the named ones with their configurations, those around them without one.

    Args:
        model: not quantized.
        configs: by name of the module.
        warn: whether a warning tells of additions that cannot be rounded.

    Raises:
        UserError: the model is quantized already, or a module cannot be.
    """
    quantized = quantized_modules(model)
    if quantized:
        states = sorted({_describe(module.quantization) for module in quantized.values()} - {""})
        raise UserError(
            f"the model is quantized already ({', '.join(states)}); start from an unquantized one, or end training "
            "with quantize_(model, QATConfig(step='convert'))"
        )
    wrong = sorted({str(p.dtype) for p in model.parameters() if p.dtype not in (torch.float32, torch.float64)})
    if wrong:
        raise UserError(f"low precision is simulated in float32, parameters are {', '.join(wrong)}; call model.float()")
    swaps: list[tuple[nn.Module, type[QuantizedModule], LayerQuantization]] = []
    for name, module in model.named_modules():
        twin = find_twin(module)
        around = any(other.startswith(f"{name}." if name else "") for other in configs)
        if twin is not None and (name in configs or around):
            config = configs.get(name)
            arithmetic = NoArithmetic() if config is None else config.arithmetic()
            twin.check(module, arithmetic)
            swaps.append((module, twin, LayerQuantization(config, arithmetic)))
    for module, twin, quantization in swaps:
        module.__class__ = twin
        assert isinstance(module, QuantizedModule)
        module.quantization = quantization
        module.prepare()
    if warn:
        _warn_of_unseen_additions(model)


def convert(model: nn.Module) -> None:
    """Rounds the weights of all quantized modules for good."""
    for module in quantized_modules(model).values():
        module.convert()


def _choose(
    model: nn.Module, base: QuantizationConfig, filter_fn: Filter, overrides: Overrides
) -> dict[str, QuantizationConfig]:
    """Decides the configuration of every module that has one."""
    chosen: dict[str, QuantizationConfig] = {}
    unused = set(overrides)
    excluded = never_quantized(model)
    for name, module in model.named_modules():
        if name in excluded or isinstance(module, QuantizedModule):
            continue
        if (find_twin(module) is None and not lacks_twin(module)) or not filter_fn(module, name):
            continue
        pattern = next((pattern for pattern in overrides if fnmatchcase(name, pattern)), None)
        unused.discard(pattern or "")
        config = base if pattern is None else overrides[pattern]
        if config is None:
            continue
        if not isinstance(config, QuantizationConfig):
            raise UserError(f"overrides[{pattern!r}] must be a configuration or None; got {config!r}")
        if lacks_twin(module):
            raise UserError(
                f"layer {name!r} is a {type(module).__name__}, which vitfast cannot quantize; "
                f"leave it out: overrides={{{name!r}: None}}"
            )
        chosen[name] = config
    if unused:
        raise UserError(
            f"overrides: no module is called {', '.join(sorted(map(repr, unused)))}; see model.named_modules()"
        )
    if not chosen and not quantized_modules(model):
        raise UserError(
            "no module is left to quantize: filter_fn(module, name) must be true for one that has a quantized form "
            "(linear layers, convolutions, LayerNorms, transformer blocks) and that overrides do not exclude"
        )
    return chosen


def _convert(model: nn.Module, base: QuantizationConfig | None) -> None:
    quantized = quantized_modules(model)
    if not quantized:
        raise UserError(
            "the model is not prepared, so there is nothing to convert; call "
            "quantize_(model, QATConfig(FP16_32Config(), step='prepare')) and train, or "
            "quantize_(model, FP16_32Config())"
        )
    if any(module.quantization.converted for module in quantized.values()):
        raise UserError("the model is converted already; there is nothing left to do")
    prepared = {module.quantization.config for module in quantized.values()}
    if base is not None and base not in prepared:
        known = ", ".join(sorted(repr(config) for config in prepared if config is not None))
        raise UserError(f"the model was prepared with {known}, not {base!r}; use QATConfig(step='convert')")
    convert(model)


def _describe(quantization: LayerQuantization) -> str:
    if quantization.config is None:
        return ""
    return f"{type(quantization.config).__name__}, {'converted' if quantization.converted else 'prepared'}"


def _warn_of_unseen_additions(model: nn.Module) -> None:
    if not any(module.quantization.arithmetic.rounds_results for module in quantized_modules(model).values()):
        return
    unseen = unseen_additions(model)
    if unseen:
        warnings.warn(
            f"results of linear layers, convolutions and LayerNorms are rounded, but additions and concatenations in "
            f"the code of {', '.join(unseen)} are not: vitfast knows no quantized form of them",
            UserWarning,
            stacklevel=4,
        )
