"""The single table of architectures: names, aliases, fields and the classes that build them.

To add a family, write a module with its fields class, table of architectures and model, and add one row to
``_FAMILIES``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from vitfast.errors import UserError
from vitfast.models.convit import CONVIT_ALIASES, CONVIT_ARCHITECTURES, ConViT, ConViTFields
from vitfast.models.deit import DistilledVisionTransformer
from vitfast.models.dvt import DVT
from vitfast.models.dvt_fields import DVT_ALIASES, DVT_ARCHITECTURES, DVTFields
from vitfast.models.foreign_model import (
    ForeignModel,
    TimmFields,
    TorchvisionFields,
    default_fields,
    foreign_names,
)
from vitfast.models.hybrid import HYBRID_ALIASES, HYBRID_ARCHITECTURES, HybridFields, HybridViT
from vitfast.models.image_model import ImageModel
from vitfast.models.model_fields import ModelFields
from vitfast.models.t2t_vit import T2T_VIT_ALIASES, T2T_VIT_ARCHITECTURES, T2TViT, T2TViTFields
from vitfast.models.vision_towers import TOWER_ARCHITECTURES
from vitfast.models.vit import VIT_ALIASES, VIT_ARCHITECTURES, VisionTransformer, ViTFields


def _build_vit(name: str, fields: ViTFields) -> ImageModel:
    model_class = VisionTransformer if fields.distillation_token == "none" else DistilledVisionTransformer
    return model_class(name, fields)


class _Family(NamedTuple):
    fields_type: type[ModelFields]
    build: Callable[[str, Any], ImageModel]
    architectures: Mapping[str, ModelFields] = {}
    aliases: Mapping[str, str] = {}


_FAMILIES = (
    _Family(ViTFields, _build_vit, {**VIT_ARCHITECTURES, **TOWER_ARCHITECTURES}, VIT_ALIASES),
    _Family(HybridFields, HybridViT, HYBRID_ARCHITECTURES, HYBRID_ALIASES),
    _Family(ConViTFields, ConViT, CONVIT_ARCHITECTURES, CONVIT_ALIASES),
    _Family(T2TViTFields, T2TViT, T2T_VIT_ARCHITECTURES, T2T_VIT_ALIASES),
    _Family(DVTFields, DVT, DVT_ARCHITECTURES, DVT_ALIASES),
    _Family(TimmFields, ForeignModel),
    _Family(TorchvisionFields, ForeignModel),
)

ARCHITECTURES = {name: fields for family in _FAMILIES for name, fields in family.architectures.items()}
_ALIASES = {alias: name for family in _FAMILIES for alias, name in family.aliases.items()}
_BUILDERS = {family.fields_type: family.build for family in _FAMILIES}


def list_models(pattern: str = "*") -> list[str]:
    """Lists the architectures whose name matches a shell pattern, sorted, without timm's and torchvision's.

    Args:
        pattern: for example ``"vit_base*"`` or ``"*_384"``.
    """
    return sorted(name for name in ARCHITECTURES if fnmatchcase(name, pattern))


def resolve_name(name: str) -> str:
    """Converts an alias, or a name with timm's tag (``vit_base_patch16_224.augreg_in1k``), to the architecture's name.

    Raises:
        UserError: there is no such architecture; the message names the nearest ones. Or timm is not installed.
    """
    architecture = name.partition(".")[0]
    foreign = foreign_names(name)
    if foreign is not None:
        if architecture not in foreign:
            raise UserError(f"unknown model {name!r}; the nearest: {_nearest(architecture, foreign)}")
        return architecture
    architecture = _ALIASES.get(architecture, architecture)
    if architecture not in ARCHITECTURES:
        nearest = _nearest(architecture, [*ARCHITECTURES, *_ALIASES])
        raise UserError(f"unknown model {name!r}; the nearest: {nearest}; vitfast.list_models() lists all")
    return architecture


def resolve_fields(name: str, /, **overrides: Any) -> ModelFields:
    """Returns the fields of the model that ``build_model`` builds from the same arguments.

    Raises:
        UserError: the name or a field is unknown, or a field's value is not allowed.
    """
    name = resolve_name(name)
    defaults = ARCHITECTURES[name] if name in ARCHITECTURES else default_fields(name)
    known = [field.name for field in dataclass_fields(defaults)]
    for field in overrides:
        if field not in known:
            raise UserError(
                f"unknown model field {field!r}; the nearest: {_nearest(field, known)}; all fields: {', '.join(known)}"
            )
    return replace(defaults, **overrides)


def build_model(name: str, /, **overrides: Any) -> ImageModel:
    """Builds a newly initialized model.

    Args:
        name: an architecture's name, an alias, a name with timm's tag, or ``timm/`` or ``torchvision/`` and the name
            of one of that library's classifiers.
        **overrides: fields of its family (``ViTFields`` for a ViT) that differ from the architecture's.

    Raises:
        UserError: the name or a field is unknown, or a field's value is not allowed.
    """
    fields = resolve_fields(name, **overrides)
    return _BUILDERS[type(fields)](resolve_name(name), fields)


def _nearest(word: str, known: list[str]) -> str:
    return ", ".join(difflib.get_close_matches(word, known, n=3, cutoff=0.0))
