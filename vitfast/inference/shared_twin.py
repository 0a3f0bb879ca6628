"""A second tree of modules over the same tensors."""

from __future__ import annotations

from torch import nn


def shared_twin(module: nn.Module, made: dict[nn.Module, nn.Module]) -> nn.Module:
    """Makes a module in evaluation mode that shares parameters, buffers and hooks with ``module``, all the way down.

    Args:
        module: is left alone.
        made: module -> its twin; what is in it from the start takes the place of a module's twin.
    """
    if module not in made:
        twin = object.__new__(type(module))
        vars(twin).update(vars(module))
        children = {
            name: None if child is None else shared_twin(child, made) for name, child in module._modules.items()
        }
        vars(twin).update(_modules=children, training=False, _compiled_call_impl=None)
        made[module] = twin
    return made[module]
