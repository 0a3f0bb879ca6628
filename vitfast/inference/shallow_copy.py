"""Copies of module trees that share their tensors."""

from __future__ import annotations

from torch import nn


def shallow_copy(module: nn.Module, copies: dict[nn.Module, nn.Module]) -> nn.Module:
    """Copies a tree of modules in evaluation mode; the copy shares parameters, buffers and hooks with ``module``.

    Args:
        module: not modified.
        copies: module -> its copy; extended by this call. Entries given by the caller replace those modules.
    """
    if module not in copies:
        copied = object.__new__(type(module))
        vars(copied).update(vars(module))
        children = {
            name: None if child is None else shallow_copy(child, copies) for name, child in module._modules.items()
        }
        vars(copied).update(_modules=children, training=False, _compiled_call_impl=None)
        copies[module] = copied
    return copies[module]
