"""Dispatch to the lowering module of a model's library."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from vitfast.inference.ir import BlockSpec, ModelSpec
from vitfast.inference.lowering.module_checks import NotRecognised, Part, plain_class
from vitfast.layers import ReuseBlock

# library -> its lowering module, and the source module that is imported if such a model exists
_LIBRARIES = {
    "vitfast": ("vitfast_models", "vitfast.models"),
    "timm": ("timm_models", "timm.models.vision_transformer"),
    "torchvision": ("torchvision_models", "torchvision.models.vision_transformer"),
    "transformers": ("huggingface_models", "transformers"),
}


@dataclass(frozen=True)
class Lowered:
    """The result of lowering a model: the whole of it, or the blocks in a model that runs its own forward."""

    spec: ModelSpec | None
    why: NotRecognised | None  # what was not recognised; None with a ``spec``
    blocks: dict[str, BlockSpec]  # by name


def lower(model: nn.Module) -> Lowered:
    """Lowers a model, or at least the blocks in it."""
    try:
        part = Part(model)
        return Lowered(_lowering_module(part).lower_model(part), None, {})
    except NotRecognised as reason:
        return Lowered(None, reason, dict(_recognised_blocks(model)))


def _lowering_module(part: Part) -> Any:
    """Returns the lowering module of the library that a module's class belongs to.

    Raises:
        NotRecognised: there is none.
    """
    cls = plain_class(part)
    library = cls.__module__.partition(".")[0]
    if library not in _LIBRARIES:
        raise NotRecognised(part.name, f"is a {cls.__module__}.{cls.__qualname__}, which is of no known library")
    lowering_module, required = _LIBRARIES[library]
    if required not in sys.modules:
        raise NotRecognised(part.name, f"is a {cls.__module__}.{cls.__qualname__}, which is no Vision Transformer")
    return importlib.import_module(f"vitfast.inference.lowering.{lowering_module}")


def _recognised_blocks(model: nn.Module) -> Iterator[tuple[str, BlockSpec]]:
    """Yields the blocks of a model that is not recognised as a whole, outermost first, each once."""
    inside: list[str] = []
    for name, module in model.named_modules():
        if not name or any(name.startswith(outer) for outer in inside) or isinstance(module, ReuseBlock):
            continue
        try:
            part = Part(module, name)
            spec = _lowering_module(part).lower_block(part)
        except NotRecognised:
            continue
        inside.append(f"{name}.")
        yield name, spec
