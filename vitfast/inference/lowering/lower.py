"""Dispatch to the lowering module of a model's library."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from vitfast.errors import UserError
from vitfast.inference.ir import BlockSpec, CascadeSpec, ModelSpec, TransformerSpec
from vitfast.inference.lowering.module_checks import NotRecognised, Part, plain_class
from vitfast.layers import ReuseBlock
from vitfast.models.foreign_model import ForeignModel

# where a class is defined -> its lowering module, and the source module that is imported if such a model exists
_LIBRARIES = {
    "vitfast": ("vitfast_models", "vitfast.models"),
    "timm.models.eva": ("eva_models", "timm.models.eva"),
    "timm.models.beit": ("timm_relative_models", "timm.models.beit"),
    "timm.models.vision_transformer_relpos": ("timm_relative_models", "timm.models.vision_transformer_relpos"),
    "timm.models.vision_transformer_sam": ("timm_sam_models", "timm.models.vision_transformer_sam"),
    "timm.models.swin_transformer": ("timm_swin_models", "timm.models.swin_transformer"),
    "timm.models.swin_transformer_v2": ("timm_swin_models", "timm.models.swin_transformer_v2"),
    "timm.models.naflexvit": ("naflex_models", "timm.models.naflexvit"),
    "timm": ("timm_models", "timm.models.vision_transformer"),
    "open_clip": ("open_clip_models", "open_clip"),
    "torchvision": ("torchvision_models", "torchvision.models.vision_transformer"),
    "transformers.models.clip": ("clip_models", "transformers"),
    "transformers.models.siglip": ("clip_models", "transformers"),
    "transformers.models.siglip2": ("clip_models", "transformers"),
    "transformers.models.dinov3_vit": ("dinov3_models", "transformers"),
    "transformers.models.beit": ("beit_models", "transformers"),
    "transformers.models.data2vec": ("beit_models", "transformers"),
    "transformers.models.internvl": ("internvl_models", "transformers.models.internvl.modeling_internvl"),
    "transformers.models.swin": ("swin_models", "transformers"),
    "transformers.models.swinv2": ("swin_models", "transformers"),
    "transformers": ("huggingface_models", "transformers"),
}


@dataclass(frozen=True)
class Lowered:
    """The result of lowering a model: the whole of it, or parts of a model that runs its own forward."""

    parts: dict[str, ModelSpec | BlockSpec]  # by name; the whole model has an empty name
    why: NotRecognised | None  # why the whole model was not recognised

    @property
    def spec(self) -> ModelSpec | None:
        """The whole model, if it was recognised."""
        whole = self.parts.get("")
        return None if isinstance(whole, BlockSpec) else whole


def lower(model: nn.Module) -> Lowered:
    """Lowers a model, or at least its image tower or the blocks in it."""
    part = Part(model)
    try:
        if isinstance(model, ForeignModel):  # a wrapper of another library's model
            part.expect(ForeignModel, children=("network",))
            part = part["network"]
        return Lowered({"": _lowering_module(part).lower_model(part)}, None)
    except NotRecognised as reason:
        return Lowered(dict(_recognised_parts(model, reason.towers)), reason)


def with_merging(lowered: Lowered, count: int) -> Lowered:
    """Returns a lowered model whose blocks merge ``count`` tokens each; 0: as it is.

    Of a model with exits these are the blocks of the last exit; those of the others merge the same share of theirs.

    Raises:
        UserError: ``count`` is negative, or the model's tokens cannot be merged.
    """
    if count < 0:
        raise UserError(f"merge_tokens={count} must not be negative; 0 merges no tokens")
    if not count:
        return lowered
    if not lowered.parts:
        raise UserError(f"merge_tokens={count}: no Vision Transformer was recognised ({lowered.why})")
    return replace(lowered, parts={name: _merging(spec, count) for name, spec in lowered.parts.items()})


def _merging(spec: ModelSpec | BlockSpec, count: int) -> ModelSpec:
    """Returns the spec of a model whose blocks merge tokens; arguments and errors as of ``with_merging``."""
    if isinstance(spec, CascadeSpec):
        positions: list[Any] = [one.embedding.positions for one in spec.exits]  # a DVT has some
        shares = [one.shape[1] / positions[-1].shape[1] for one in positions]
        exits: list[Any] = [_merging(one, round(share * count)) for one, share in zip(spec.exits, shares, strict=True)]
        return replace(spec, exits=tuple(exits))
    why = _why_not_merged(spec)
    if why or not isinstance(spec, TransformerSpec):
        raise UserError(f"merge_tokens: {why}; leave it out")
    return replace(spec, merge_tokens=count)


def _why_not_merged(spec: ModelSpec | BlockSpec) -> str:
    """Says why the tokens of a model cannot be merged; empty if they can."""
    if not isinstance(spec, TransformerSpec):
        return "tokens are merged only in models that are recognised as a whole"
    if spec.rotary or spec.late_prefix:
        return "merged tokens have no position for rotary embeddings, or for a class token that a later block inserts"
    for block in spec.blocks:
        if not isinstance(block, BlockSpec):
            return f"{block.name} is no plain block"
        attention = block.attention
        if attention.bias or attention.windows or attention.gated or attention.cosine is not None:
            return f"the attention of {block.name} depends on the tokens' positions"
        if attention.q_norm or attention.k_norm or block.is_post_norm or block.parallel:
            return f"{block.name} normalizes q and k, is post-norm or has parallel layers"
    return ""


def _lowering_module(part: Part) -> Any:
    """Returns the lowering module of the library that a module's class belongs to.

    Raises:
        NotRecognised: there is none.
    """
    cls = plain_class(part)
    library = next((name for name in _LIBRARIES if f"{cls.__module__}.".startswith(f"{name}.")), None)
    if library is None:
        raise NotRecognised(part.name, f"is a {cls.__module__}.{cls.__qualname__}, which is of no known library")
    lowering_module, required = _LIBRARIES[library]
    if required not in sys.modules:
        raise NotRecognised(part.name, f"is a {cls.__module__}.{cls.__qualname__}, which is no Vision Transformer")
    return importlib.import_module(f"vitfast.inference.lowering.{lowering_module}")


def _recognised_parts(model: nn.Module, towers: tuple[str, ...]) -> Iterator[tuple[str, ModelSpec | BlockSpec]]:
    """Yields the parts of a model that is not recognised as a whole, outermost first, each once."""
    inside: list[str] = []
    for name, module in model.named_modules():
        if not name or any(name.startswith(outer) for outer in inside) or isinstance(module, ReuseBlock):
            continue
        part = Part(module, name)
        try:
            lowering = _lowering_module(part)
            spec = lowering.lower_model(part) if name in towers else lowering.lower_block(part)
        except NotRecognised:
            continue
        inside.append(f"{name}.")
        yield name, spec
