"""Whether a module is exactly of a class, with nothing changed by hooks, replaced methods or added parts."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from types import FunctionType
from typing import Any

from torch import nn

from vitfast.inference.lowering.not_recognised import NotRecognised
from vitfast.inference.lowering.quantized import plain_class

_HOOKS = {
    "_forward_pre_hooks": "a forward pre-hook",
    "_forward_hooks": "a forward hook",
    "_backward_hooks": "a backward hook",
    "_backward_pre_hooks": "a backward pre-hook",
}


def expect(
    module: nn.Module | None,
    name: str,
    *classes: type[nn.Module],
    children: Collection[str] = (),
    tensors: Collection[str] = (),
) -> Any:
    """Returns ``module`` if it computes what its class does, and nothing else.

    Args:
        module: any.
        name: of the module in the source.
        *classes: one of which it is exactly, or a quantized twin of it; a subclass may compute something else.
        children: names of all its submodules; None under such a name counts as none.
        tensors: names of all its parameters and buffers; None counts as none.

    Raises:
        NotRecognised: it is something else, has hooks, replaced methods, or parts that its class does not have.
    """
    if module is None:
        raise NotRecognised(name, "is missing")
    found = plain_class(module, name)
    if found not in classes:
        known = " or ".join(sorted({f"{one.__module__.split('.')[0]}'s {one.__name__}" for one in classes}))
        raise NotRecognised(name, f"is a {found.__module__}.{found.__qualname__}, not {known}")
    check_unmodified(module, name)
    for kind, present, expected in (
        ("submodule", module._modules, children),
        ("parameter", module._parameters, tensors),
        ("buffer", module._buffers, tensors),
    ):
        others = [key for key, value in present.items() if value is not None and key not in expected]
        if others and not _is_quantization_buffer(kind, others):
            raise NotRecognised(name, f"has a {kind} {others[0]!r} that {found.__name__} does not have")
    return module


def check_unmodified(module: nn.Module, name: str) -> None:
    """Checks that nothing changes what a module's class computes.

    Raises:
        NotRecognised: it has hooks or parametrizations, or methods were replaced, in the instance or the class.
    """
    for attribute, hook in _HOOKS.items():
        if getattr(module, attribute, None):
            raise NotRecognised(name, f"has {hook}")
    for attribute, value in vars(module).items():
        if callable(value) and callable(getattr(type(module), attribute, None)) and not isinstance(value, type):
            raise NotRecognised(name, f"its method {attribute} was replaced")
    for cls in type(module).__mro__:
        if cls is nn.Module:
            break
        if "forward" not in vars(cls):  # what a library mixes in for other purposes
            continue
        for attribute, value in vars(cls).items():
            if isinstance(value, FunctionType) and inspect.unwrap(value).__module__ != cls.__module__:
                raise NotRecognised(name, f"the method {attribute} of its class {cls.__name__} was replaced")


def _is_quantization_buffer(kind: str, names: list[str]) -> bool:
    return kind == "buffer" and set(names) <= {"weight_scale", "activation_range"}
