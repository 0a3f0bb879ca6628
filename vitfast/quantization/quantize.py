"""``quantize_`` and the state of a quantized model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from fnmatch import fnmatchcase

import torch
from torch import nn

from vitfast.errors import UserError
from vitfast.layers import LayerNorm, StoredResult
from vitfast.quantization.arithmetic import Arithmetic
from vitfast.quantization.configs import QATConfig, QuantizationConfig
from vitfast.quantization.counterparts import (
    call_layers,
    find_counterpart,
    is_left_out,
    lacks_counterpart,
    never_quantized,
    unrounded_additions,
)
from vitfast.quantization.named_configs import format_name
from vitfast.quantization.quantized_module import LayerQuantization, Mode, QuantizedLinearBase, QuantizedModule

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
    float32 under any autocast. ``docs/internals/numerics.md`` lists which tensors are rounded.

    Args:
        model: from ``create_model``, timm or torchvision, or built from torch's layers, with float32 parameters.
        config: ``FP16_16Config()``, ``FP16_32Config()``, ``TF32Config()``, ``Int8Config()``, ``FloatConfig(format)`` or
            ``FixedConfig(word_length, fraction_length)``: rounds weights permanently and activations in each forward
            pass. ``QATConfig(base, step)``: the same in two steps, with training between them.
        filter_fn: ``filter_fn(module, name)`` returns whether a module is quantized. It is called for every linear
            layer, convolution, LayerNorm and attention, and for the blocks and models whose additions are rounded. By
            default all are.
        overrides: other configurations, or None for float32, by name pattern: ``{"blocks.0.*": None, "head":
            Int8Config()}``. The first match counts; ``*`` also matches dots.

    Raises:
        UserError: ``config`` is not a configuration; the model is quantized already, or not prepared for ``"convert"``;
            its parameters are not float32; the filter or a pattern matches nothing; a layer has an unsupported class.
    """
    if isinstance(config, QATConfig) and config.step == "convert":
        if filter_fn is not None or overrides is not None:
            raise UserError("step='convert' converts what was prepared and takes no filter_fn and no overrides")
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


def configured_as(name: str, module: nn.Module) -> str:
    """Returns the name under which filters, overrides and records address a module.

    A stored result (an addition, a concatenation) is addressed by the module that contains it.
    """
    return name.rpartition(".")[0] if isinstance(module, StoredResult) else name


def configurations(model: nn.Module) -> dict[str, QuantizationConfig]:
    """Returns the configurations of the quantized modules, by ``configured_as``."""
    return {
        configured_as(name, module): module.quantization.config
        for name, module in quantized_modules(model).items()
        if module.quantization.config is not None
    }


def is_converted(model: nn.Module) -> bool:
    """Returns whether the weights of a model are rounded permanently."""
    return any(module.quantization.converted for module in quantized_modules(model).values())


def describe_quantization(model: nn.Module) -> str:
    """Returns a short description, ``"FP16_32, prepared"``; empty if the model is not quantized."""
    names = dict.fromkeys(map(format_name, configurations(model).values()))
    return f"{' and '.join(names)}, {'converted' if is_converted(model) else 'prepared'}" if names else ""


def prepare(model: nn.Module, configs: Mapping[str, QuantizationConfig], *, warn: bool = True) -> None:
    """Replaces the classes of modules by their quantized counterparts.

    Modules of foreign libraries that contain a quantized module get a counterpart without a configuration.

    Args:
        model: not quantized.
        configs: by ``configured_as``; names of modules that have no counterpart have no effect.
        warn: whether to warn about additions that cannot be rounded.

    Raises:
        UserError: the model is quantized already, or a module cannot be.
    """
    if quantized_modules(model):
        raise UserError(
            f"the model is quantized already ({describe_quantization(model)}); start from an unquantized one, or end "
            "training with quantize_(model, QATConfig(step='convert'))"
        )
    wrong = sorted({str(p.dtype) for p in model.parameters() if p.dtype not in (torch.float32, torch.float64)})
    if wrong:
        raise UserError(f"low precision is simulated in float32, parameters are {', '.join(wrong)}; call model.float()")
    swaps: list[tuple[nn.Module, type[QuantizedModule], LayerQuantization]] = []
    for name, module in model.named_modules():
        counterpart = find_counterpart(module)
        config = configs.get(configured_as(name, module))
        contains_quantized = any(other.startswith(f"{name}." if name else "") for other in configs)
        is_leaf = next(module.children(), None) is None
        if counterpart is not None and (config is not None or (contains_quantized and not is_leaf)):
            arithmetic = Arithmetic() if config is None else config.arithmetic()
            counterpart.check(module, arithmetic)
            swaps.append((module, counterpart, LayerQuantization(config, arithmetic)))
    for name, module in model.named_modules():
        if any(other.startswith(f"{name}." if name else "") for other in configs):
            call_layers(module)
        if isinstance(module, LayerNorm):
            module.feeds_linear = False  # quantized layers read float32 under autocast, too
    for module, counterpart, quantization in swaps:
        module.__class__ = counterpart
        assert isinstance(module, QuantizedModule)
        module.quantization = quantization
        if isinstance(module, QuantizedLinearBase):
            quantization.arithmetic.prepare_layer(module)
    if warn:
        _warn_of_unrounded_additions(model)


def convert(model: nn.Module) -> None:
    """Rounds the weights of all quantized modules permanently."""
    for module in quantized_modules(model).values():
        module.convert()


def disable_fake_quantize(model: nn.Module) -> AbstractContextManager[None]:
    """Computes without rounding within the context: a prepared model returns the bits of the unquantized one.

    The weights of a converted model stay rounded.

    Raises:
        UserError: the model is not quantized; raised when the context is entered.
    """
    return quantization_mode(model, "off")


@contextmanager
def quantization_mode(model: nn.Module, mode: Mode) -> Iterator[None]:
    """Sets the mode of every quantized module within the context, see ``Mode``.

    Raises:
        UserError: the model is not quantized.
    """
    modules = list(quantized_modules(model).values())
    if not modules:
        raise UserError("the model is not quantized; call quantize_(model, FP16_32Config()), for example, first")
    before = [module.quantization.mode for module in modules]
    try:
        for module in modules:
            module.quantization.mode = mode
        yield
    finally:
        for module, old in zip(modules, before, strict=True):
            module.quantization.mode = old


def _choose(
    model: nn.Module, base: QuantizationConfig, filter_fn: Filter, overrides: Overrides
) -> dict[str, QuantizationConfig]:
    """Returns the configuration of every module that is quantized, by ``configured_as``."""
    chosen: dict[str, QuantizationConfig] = {}
    modules = dict(model.named_modules())
    patterns = {name: next((p for p in overrides if fnmatchcase(name, p)), None) for name in modules}
    # a vitfast layer around quantized ones may be named although it rounds nothing itself
    containers = (name for name, module in modules.items() if next(module.children(), None) is not None)
    used = {patterns[name] for name in containers if type(modules[name]).__module__.startswith("vitfast.")}
    excluded, left_out = never_quantized(model), []
    for leaf_name, leaf in modules.items():
        if leaf_name in excluded or isinstance(leaf, QuantizedModule):
            continue
        name = configured_as(leaf_name, leaf)
        if find_counterpart(leaf) is None and not lacks_counterpart(leaf) and not is_left_out(leaf):
            continue
        if not _is_chosen(filter_fn, modules[name], name):
            continue
        pattern = patterns[name]
        used.add(pattern)
        config = base if pattern is None else overrides[pattern]
        if config is None:
            continue
        if not isinstance(config, QuantizationConfig):
            raise UserError(f"overrides[{pattern!r}] must be a configuration or None; got {config!r}")
        if is_left_out(leaf):
            left_out.append(f"{name} ({type(leaf).__name__})")
            continue
        if lacks_counterpart(leaf):
            raise UserError(
                f"layer {name!r} is a {type(leaf).__name__}, which vitfast cannot quantize; "
                f"leave it out: overrides={{{name!r}: None}}"
            )
        chosen[name] = config
    unused = overrides.keys() - used
    if unused:
        raise UserError(
            f"overrides: no module is called {', '.join(sorted(map(repr, unused)))}; see model.named_modules()"
        )
    if not chosen and not quantized_modules(model):
        raise UserError(
            "no module is left to quantize: filter_fn(module, name), first the module, then its name, must be true for "
            "one that has a quantized form (linear layers, convolutions, LayerNorms, transformer blocks) and that "
            "overrides do not exclude"
        )
    if left_out:
        more = f" and {len(left_out) - 5} more" if len(left_out) > 5 else ""
        warnings.warn(
            f"these layers have no quantized form and stay in float32: {', '.join(left_out[:5])}{more}; exclude them "
            "with overrides={name: None} to quantize without this warning",
            UserWarning,
            stacklevel=3,
        )
    return chosen


def _is_chosen(filter_fn: Filter, module: nn.Module, name: str) -> bool:
    try:
        return bool(filter_fn(module, name))
    except (TypeError, AttributeError) as error:
        raise UserError(
            f"filter_fn(module, name) failed for {name!r}: {error}; its first argument is the module, the second the "
            "module's name"
        ) from error


def _convert(model: nn.Module, base: QuantizationConfig | None) -> None:
    quantized = quantized_modules(model)
    if not quantized:
        raise UserError(
            "the model is not prepared, so there is nothing to convert; call "
            "quantize_(model, QATConfig(FP16_32Config(), step='prepare')) and train, or "
            "quantize_(model, FP16_32Config())"
        )
    if is_converted(model):
        raise UserError("the model is converted already; there is nothing left to do")
    prepared = {module.quantization.config for module in quantized.values()}
    if base is not None and base not in prepared:
        known = ", ".join(sorted(repr(config) for config in prepared if config is not None))
        raise UserError(f"the model was prepared with {known}, not {base!r}; use QATConfig(step='convert')")
    convert(model)


def _warn_of_unrounded_additions(model: nn.Module) -> None:
    if not any(module.quantization.arithmetic.rounder("stored") for module in quantized_modules(model).values()):
        return
    classes = unrounded_additions(model)
    if classes:
        warnings.warn(
            f"results of linear layers, convolutions and LayerNorms are rounded, but additions and concatenations in "
            f"the code of {', '.join(classes)} are not: vitfast has no quantized counterpart of them",
            UserWarning,
            stacklevel=4,
        )
