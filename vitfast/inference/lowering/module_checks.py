"""Checks that a module is exactly of a class: no hooks, replaced methods, added parts or unsupported quantization."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from types import FunctionType
from typing import Any

from torch import nn

from vitfast.formats import FloatFormat
from vitfast.inference.ir import Precision
from vitfast.quantization.arithmetic import Arithmetic, RoundedArithmetic
from vitfast.quantization.int8_arithmetic import Int8Arithmetic
from vitfast.quantization.quantized_module import QuantizedModule
from vitfast.quantization.rounders import FloatRounder

_HOOKS = {
    "_forward_pre_hooks": "a forward pre-hook",
    "_forward_hooks": "a forward hook",
    "_backward_hooks": "a backward hook",
    "_backward_pre_hooks": "a backward pre-hook",
}
# transformers leaves its hooks, which collect hidden states, on a model that was called with output_hidden_states
_CAPTURING = "transformers.utils.output_capturing"


class NotRecognised(Exception):
    """A module is not of a supported class and configuration.

    Args:
        name: name of the module in the source; empty for the source itself.
        why: what is not supported; completes a sentence that begins with the name.
        towers: names of submodules that may be Vision Transformers, of which the module calls only ``forward``.
    """

    def __init__(self, name: str, why: str, towers: tuple[str, ...] = ()) -> None:
        super().__init__(f"{name or 'the model'}: {why}")
        self.name = name
        self.why = why
        self.towers = towers


class Part:
    """A module of the source model; ``part["fc1"]`` is its submodule ``fc1``.

    Attributes:
        module: the module; None if it is missing.
        name: its name in the source model; empty for the model itself.
    """

    def __init__(self, module: nn.Module | None, name: str = "") -> None:
        self.module: Any = module
        self.name = name

    def __getitem__(self, child: str) -> Part:
        return Part(getattr(self.module, child, None), f"{self.name}.{child}" if self.name else child)

    def children(self) -> list[Part]:
        """The submodules, in order."""
        return [self[child] for child in self.module._modules]

    @property
    def is_identity(self) -> bool:
        """Whether it is missing, or a plain ``nn.Identity``."""
        return self.module is None or type(self.module) is nn.Identity

    def expect(self, *classes: type[nn.Module], children: Collection[str] = (), tensors: Collection[str] = ()) -> Any:
        """Returns the module if it computes what its class does, and nothing else.

        Args:
            *classes: allowed classes, or their quantized counterparts; subclasses are not allowed.
            children: names of all its submodules; they may be missing or None.
            tensors: names of all its parameters and buffers; they may be missing or None.

        Raises:
            NotRecognised: it has another class, hooks, replaced methods, or parts that its class does not have.
        """
        if self.module is None:
            raise NotRecognised(self.name, "is missing")
        found = plain_class(self)
        if found not in classes:
            known = " or ".join(sorted({f"{one.__module__.split('.')[0]}'s {one.__name__}" for one in classes}))
            raise NotRecognised(self.name, f"is a {found.__module__}.{found.__qualname__}, not {known}")
        _check_unmodified(self.module, self.name)
        for kind, present, expected in (
            ("submodule", self.module._modules, children),
            ("parameter", self.module._parameters, tensors),
            ("buffer", self.module._buffers, (*tensors, "weight_scale", "activation_range")),  # of quantized modules
        ):
            others = [key for key, value in present.items() if value is not None and key not in expected]
            if others:
                raise NotRecognised(self.name, f"has a {kind} {others[0]!r} that {found.__name__} does not have")
        return self.module


def plain_class(part: Part) -> type[nn.Module]:
    """Returns a module's class; for a quantized module the class that it replaces.

    Raises:
        NotRecognised: no kernel supports the module's quantization.
    """
    if not isinstance(part.module, QuantizedModule):
        return type(part.module)
    precision_of(part)
    bases = (cls for cls in type(part.module).__mro__ if issubclass(cls, nn.Module))
    return next(cls for cls in bases if not issubclass(cls, QuantizedModule))


def precision_of(part: Part) -> Precision | None:
    """Returns the precision of a quantized module; None for one that is not quantized.

    Raises:
        NotRecognised: no kernel supports its quantization.
    """
    if not isinstance(part.module, QuantizedModule):
        return None
    quantization = part.module.quantization
    if quantization.mode != "quantized":
        raise NotRecognised(part.name, f"its quantization is switched to {quantization.mode!r}")
    if quantization.config is None:
        return "fp32"
    precision = _precision(quantization.arithmetic)
    if precision is None:
        raise NotRecognised(part.name, f"is quantized with {quantization.config}, which has no fast kernel")
    return precision


def quantized_precisions(model: nn.Module) -> set[str]:
    """Returns the precisions of a model's quantized layers; ``"other"`` for those that no kernel supports."""
    found: set[str] = set()
    for module in model.modules():
        if isinstance(module, QuantizedModule) and module.quantization.config is not None:
            found.add(_precision(module.quantization.arithmetic) or "other")
    return found


def _check_unmodified(module: nn.Module, name: str) -> None:
    """Checks that a module has no hooks, and that no method was replaced, in the instance or the class."""
    for attribute, hook in _HOOKS.items():
        functions = getattr(module, attribute, {}).values()
        if any(getattr(function, "__module__", None) != _CAPTURING for function in functions):
            raise NotRecognised(name, f"has {hook}")
    for attribute, value in vars(module).items():
        if callable(value) and callable(getattr(type(module), attribute, None)) and not isinstance(value, type):
            raise NotRecognised(name, f"its method {attribute} was replaced")
    for cls in type(module).__mro__:
        if cls is nn.Module:
            break
        if "forward" not in vars(cls):  # a mixin without influence on the forward pass
            continue
        for attribute, value in vars(cls).items():
            if isinstance(value, FunctionType) and inspect.unwrap(value).__module__ != cls.__module__:
                raise NotRecognised(name, f"the method {attribute} of its class {cls.__name__} was replaced")


def _precision(arithmetic: Arithmetic) -> Precision | None:
    if type(arithmetic) is Arithmetic:
        return "fp32"
    if isinstance(arithmetic, Int8Arithmetic):
        return None if arithmetic.calibrated else "int8"
    if type(arithmetic) is RoundedArithmetic and isinstance(arithmetic.rounding, FloatRounder):
        is_fp16_32 = (
            arithmetic.rounding.format == FloatFormat.fp16()
            and arithmetic.rounding.rounding == "nearest_even"
            and not arithmetic.round_results
            and not arithmetic.legacy_convert
        )
        return "fp16_32" if is_fp16_32 else None
    return None
