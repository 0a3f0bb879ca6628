"""When a layer may read the weights of its sublayers directly, and when a tensor may be rounded in place."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

_MARK = "_vitfast_in_place"


def may_fuse(*layers: nn.Module) -> bool:
    """Returns whether one operator may compute ``layers`` from their weights instead of calling each of them.

    True for plain ``nn.Linear`` and ``nn.Conv2d`` layers without hooks, and for their quantized counterparts while
    quantization is switched off. A subclass may compute something else, so it is called.
    """
    return all(
        (type(layer) in (nn.Linear, nn.Conv2d) or getattr(layer, "is_off", False)) and not has_hooks(layer)
        for layer in layers
    )


def has_hooks(module: nn.Module) -> bool:
    """Returns whether ``module`` has forward or backward hooks."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def is_observed(*modules: nn.Module) -> bool:
    """Returns whether a hook, of one of ``modules`` or of all modules, can see a tensor that passes between them."""
    return any(map(has_hooks, modules)) or bool(_has_any_global_hook())


def allow_in_place(x: Tensor, producer: nn.Module, reader: nn.Module, name: str) -> Tensor:
    """Lets the quantized linear layer ``reader.<name>`` round ``x`` in place.

    The caller guarantees that nothing else reads ``x``. Has no effect if that layer is not quantized, if ``producer``
    may have returned its input, or if a hook can see ``x``.

    Args:
        x: the result of ``producer``, which is returned.
        producer: a LayerNorm or dropout.
        reader: the module that passes ``x`` to its linear layer.
        name: the attribute that holds this layer.
    """
    layer = reader._modules.get(name)
    if type(layer) is nn.Linear or not isinstance(layer, nn.Linear) or torch.compiler.is_compiling():
        return x
    if isinstance(producer, (nn.LayerNorm, nn.Dropout)) and not is_observed(producer, reader, layer):
        setattr(x, _MARK, True)
    return x


def take_in_place(x: Tensor) -> bool:
    """Returns whether ``x`` may be overwritten, and clears the mark that ``allow_in_place`` set."""
    if torch.compiler.is_compiling() or not hasattr(x, _MARK):
        return False
    delattr(x, _MARK)
    return True
