"""The table of families, and how a file's keys tell its own."""

from __future__ import annotations

import re
from collections.abc import Collection

from vitfast.errors import UserError
from vitfast.models.image_model import ModelFields
from vitfast.models.vit_fields import ViTFields
from vitfast.weights.families.convit import CONVIT
from vitfast.weights.families.dvt import DVT
from vitfast.weights.families.google import GOOGLE, GOOGLE_HYBRID, GOOGLE_STEM_HYBRID
from vitfast.weights.families.huggingface import HUGGINGFACE
from vitfast.weights.families.jeonsworld import JEONSWORLD, JEONSWORLD_HYBRID
from vitfast.weights.families.myrtle import MYRTLE
from vitfast.weights.families.other_kinds import refuse_other_kinds
from vitfast.weights.families.t2t_vit import T2T_VIT
from vitfast.weights.families.timm import DEIT, TIMM, TIMM_HYBRID
from vitfast.weights.families.torchvision import TORCHVISION
from vitfast.weights.families.vissl import VISSL, VISSL_2021, VISSL_CONVIT
from vitfast.weights.family import Family
from vitfast.weights.key_map import Rule

# The first whose signature fits: a ConViT or a hybrid has all keys that a ViT's signature asks for. DeiT's has timm's
# keys and is told from timm's by its wrapper.
FAMILIES: tuple[Family, ...] = (
    GOOGLE_HYBRID,
    GOOGLE_STEM_HYBRID,
    GOOGLE,
    CONVIT,
    T2T_VIT,
    DVT,
    TIMM_HYBRID,
    DEIT,
    TIMM,
    TORCHVISION,
    HUGGINGFACE,
    JEONSWORLD_HYBRID,
    JEONSWORLD,
    MYRTLE,
    VISSL_CONVIT,
    VISSL,
    VISSL_2021,
)

# for models that no foreign family fits: the keys of the model itself, or of the library that it is from
OWN_KEYS = Family(name="own keys", signature=(), rules=(Rule(r"(.+)", r"\1"),), models=ModelFields)

_SHOWN_KEYS = 5


def recognize(
    keys: Collection[str], wrapper: str, models: type[ModelFields] | None, *, source: str, model_name: str | None
) -> Family:
    """Tells whose weights a file holds.

    Args:
        keys: the file's keys.
        wrapper: the entry that held them.
        models: the fields' class of the model that they are for; None if that is not known yet.
        source: the file, for messages.
        model_name: the model, for messages.

    Raises:
        UserError: they are of no family, of a kind that is not supported, or for another kind of model.
    """
    family = next((family for family in FAMILIES if _fits(family, keys, wrapper)), None)
    if family is None:
        refuse_other_kinds(keys, source)
    has_family = models is None or any(known.models is models for known in FAMILIES)
    if not has_family or (family is None and models not in (None, ViTFields)):
        return OWN_KEYS
    if family is None:
        known = ", ".join(dict.fromkeys(family.name for family in FAMILIES))
        first = ", ".join(list(keys)[:_SHOWN_KEYS])
        raise UserError(
            f"{source} holds no weights of a Vision Transformer that vitfast knows: its keys are {first}, …; "
            f"known are those of {known}; rename the keys to timm's to load others"
        )
    for pattern, what in family.foreign:
        if key := next((key for key in keys if re.fullmatch(pattern, key)), None):
            raise UserError(f"{source} is {what} (it has {key}); vitfast does not load these")
    if models is not None and family.models is not models:
        raise UserError(f"{source} holds {family.name} weights, which do not fit {model_name}, another kind of model")
    return family


def _fits(family: Family, keys: Collection[str], wrapper: str) -> bool:
    if family.wrapper is not None and family.wrapper != wrapper:
        return False
    return all(any(re.fullmatch(pattern, key) for key in keys) for pattern in family.signature)
