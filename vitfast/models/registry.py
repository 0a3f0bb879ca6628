"""All architectures by name, and how a name becomes a model."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from vitfast.errors import UserError
from vitfast.models.convit import ConViT
from vitfast.models.convit_architectures import CONVIT_ALIASES, CONVIT_ARCHITECTURES
from vitfast.models.convit_fields import ConViTFields
from vitfast.models.deit import DistilledVisionTransformer
from vitfast.models.dvt import DVT
from vitfast.models.dvt_architectures import DVT_ALIASES, DVT_ARCHITECTURES
from vitfast.models.dvt_fields import DVTFields
from vitfast.models.hybrid import HybridViT
from vitfast.models.hybrid_architectures import HYBRID_ALIASES, HYBRID_ARCHITECTURES
from vitfast.models.hybrid_fields import HybridFields
from vitfast.models.image_model import ImageModel, ModelFields
from vitfast.models.t2t_vit import T2TViT
from vitfast.models.t2t_vit_architectures import T2T_VIT_ALIASES, T2T_VIT_ARCHITECTURES
from vitfast.models.t2t_vit_fields import T2TViTFields
from vitfast.models.torchvision_model import TorchvisionFields, TorchvisionModel, is_torchvision_name
from vitfast.models.vit import VisionTransformer
from vitfast.models.vit_architectures import VIT_ALIASES, VIT_ARCHITECTURES
from vitfast.models.vit_fields import ViTFields

# a family brings a table of names, the names that other systems use, and what builds a model from its fields
ARCHITECTURES: dict[str, ModelFields] = {
    **VIT_ARCHITECTURES,
    **HYBRID_ARCHITECTURES,
    **CONVIT_ARCHITECTURES,
    **T2T_VIT_ARCHITECTURES,
    **DVT_ARCHITECTURES,
}
_ALIASES: dict[str, str] = {
    **VIT_ALIASES,
    **HYBRID_ALIASES,
    **CONVIT_ALIASES,
    **T2T_VIT_ALIASES,
    **DVT_ALIASES,
}


def _build_vit(name: str, fields: ViTFields) -> ImageModel:
    model_class = VisionTransformer if fields.distillation_token == "none" else DistilledVisionTransformer
    return model_class(name, fields)


_BUILDERS: dict[type[ModelFields], Callable[[str, Any], ImageModel]] = {
    ViTFields: _build_vit,
    HybridFields: HybridViT,
    ConViTFields: ConViT,
    T2TViTFields: T2TViT,
    DVTFields: DVT,
    TorchvisionFields: TorchvisionModel,
}


def list_models(pattern: str = "*") -> list[str]:
    """Lists the architectures whose name matches a shell pattern, sorted; torchvision's networks are not among them.

    Args:
        pattern: for example ``"vit_base*"`` or ``"*_384"``.
    """
    return sorted(name for name in ARCHITECTURES if fnmatchcase(name, pattern))


def resolve_name(name: str) -> str:
    """Turns an alias, or a name with timm's tag (``vit_base_patch16_224.augreg_in1k``), into the architecture's name.

    Raises:
        UserError: there is no such architecture; the message names the nearest ones.
    """
    if is_torchvision_name(name):
        return name
    architecture = name.partition(".")[0]
    architecture = _ALIASES.get(architecture, architecture)
    if architecture not in ARCHITECTURES:
        nearest = _nearest(architecture, [*ARCHITECTURES, *_ALIASES])
        raise UserError(f"unknown model {name!r}; the nearest: {nearest}; vitfast.list_models() lists all")
    return architecture


def resolve_fields(name: str, **overrides: Any) -> ModelFields:
    """Returns the fields with which ``build_model`` builds a model.

    Args:
        name: as in ``build_model``.
        **overrides: as in ``build_model``.

    Raises:
        UserError: the name or a field is unknown, or a field's value is not allowed.
    """
    name = resolve_name(name)
    defaults = TorchvisionFields() if is_torchvision_name(name) else ARCHITECTURES[name]
    known = [field.name for field in dataclass_fields(defaults)]
    for field in overrides:
        if field not in known:
            raise UserError(
                f"unknown model field {field!r}; the nearest: {_nearest(field, known)}; all fields: {', '.join(known)}"
            )
    return replace(defaults, **overrides)


def build_model(name: str, **overrides: Any) -> ImageModel:
    """Builds a freshly initialized model.

    Args:
        name: an architecture's name, an alias, a name with timm's tag, or ``torchvision/`` and the name of one of
            torchvision's classifiers.
        **overrides: fields of its family (``ViTFields`` for a ViT) that differ from the architecture's.

    Raises:
        UserError: the name or a field is unknown, or a field's value is not allowed.
    """
    fields = resolve_fields(name, **overrides)
    return _BUILDERS[type(fields)](resolve_name(name), fields)


def _nearest(word: str, known: list[str]) -> str:
    return ", ".join(difflib.get_close_matches(word, known, n=3, cutoff=0.0))
