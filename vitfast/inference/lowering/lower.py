"""Which recogniser a model belongs to."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from vitfast import layers as own
from vitfast.inference.ir import BlockSpec, ModelSpec
from vitfast.inference.lowering.not_recognised import NotRecognised
from vitfast.inference.lowering.quantized import plain_class

# a module that is imported by then if a model of that library exists -> our recogniser
_LIBRARIES = {
    "vitfast.models": "vitfast_models",
    "timm.models.vision_transformer": "timm_models",
    "torchvision.models.vision_transformer": "torchvision_models",
    "transformers": "huggingface_models",
}
_LIBRARY_OF_CLASS = {name.partition(".")[0]: recogniser for name, recogniser in _LIBRARIES.items()}


@dataclass(frozen=True)
class Lowered:
    """What was recognised of a model.

    Attributes:
        spec: the whole model; None if it has to run its own forward.
        why: what was not recognised then.
        blocks: where the model runs its own forward, the blocks within it that are recognised all the same.
    """

    spec: ModelSpec | None
    why: NotRecognised | None
    blocks: dict[str, BlockSpec]


def lower(model: nn.Module) -> Lowered:
    """Describes a model, or at least the blocks in it.

    Args:
        model: any.
    """
    try:
        return Lowered(_describe(model), None, {})
    except NotRecognised as reason:
        return Lowered(None, reason, dict(_known_blocks(model)))


def describe_block(name: str, module: nn.Module) -> BlockSpec:
    """Describes a transformer block of any of the libraries.

    Raises:
        NotRecognised: it is none, or something in it was changed.
    """
    recogniser = _recogniser(module, name)
    if recogniser == "vitfast_models":
        recogniser = "vitfast_parts"
    described: BlockSpec = _load(recogniser).block(name, module)
    return described


def _describe(model: nn.Module) -> ModelSpec:
    described: ModelSpec = _load(_recogniser(model, "")).describe(model)
    return described


def _recogniser(module: nn.Module, name: str) -> str:
    cls = plain_class(module, name)
    found = _LIBRARY_OF_CLASS.get(cls.__module__.partition(".")[0])
    if found is None:
        raise NotRecognised(name, f"is a {cls.__module__}.{cls.__qualname__}, which is of no known library")
    if found == "torchvision_models" and "torchvision.models.vision_transformer" not in sys.modules:
        raise NotRecognised(name, f"is a {cls.__module__}.{cls.__qualname__}, which is no Vision Transformer")
    return found


def _load(recogniser: str):  # type: ignore[no-untyped-def]
    return importlib.import_module(f"vitfast.inference.lowering.{recogniser}")


def _known_blocks(model: nn.Module) -> Iterator[tuple[str, BlockSpec]]:
    """Blocks of a model that is not recognised as a whole, outermost first, each once."""
    inside: list[str] = []
    for name, module in model.named_modules():
        if not name or any(name.startswith(outer) for outer in inside) or isinstance(module, own.ReuseBlock):
            continue
        try:
            described = describe_block(name, module)
        except NotRecognised:
            continue
        inside.append(f"{name}.")
        yield name, described
