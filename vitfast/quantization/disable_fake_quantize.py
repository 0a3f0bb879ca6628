"""Switching the simulation off for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from vitfast.errors import UserError
from vitfast.quantization.quantize import quantized_modules
from vitfast.quantization.quantized_module import Mode


@contextmanager
def disable_fake_quantize(model: nn.Module) -> Iterator[None]:
    """Computes without rounding within the context: a prepared model gives the bits of the unquantized one.

    The weights of a converted model stay rounded.

    Args:
        model: quantized.

    Raises:
        UserError: it is not.
    """
    with quantization_mode(model, "off"):
        yield


@contextmanager
def quantization_mode(model: nn.Module, mode: Mode) -> Iterator[None]:
    """Sets the mode of every quantized module, see ``LayerQuantization``, and restores it.

    Raises:
        UserError: there is none.
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
