"""timm, DeiT, ConViT and T2T-ViT: formats whose keys are vitfast's keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from vitfast.errors import UserError
from vitfast.models.convit import ConViTFields
from vitfast.models.hybrid import HybridFields
from vitfast.models.t2t_vit import T2TViTFields
from vitfast.weights.key_tables.key_table import KeyTable

_SIGNATURE = (r"patch_embed\.proj\.weight", r"blocks\.\d+\.attn\.qkv\.weight")

_POOLINGS = {"token": "token", "avg": "patch_mean"}  # timm's average is without the tokens before the patches


def _read_pooling(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the pooling from ``config.json``, or infers it: timm normalizes behind the pooling if that is a mean."""
    if not {"cls_token", "reg_token"} & tensors.keys() or "attn_pool.latent" in tensors:
        return {}  # the mean of all tokens is that of the patches, or the pooling has weights
    if pooling := config.get("global_pool"):
        if pooling not in _POOLINGS:
            raise UserError(f"the model pools by global_pool={pooling!r}; vitfast loads {', '.join(_POOLINGS)}")
        return {"pooling": _POOLINGS[pooling]}
    return {"pooling": "patch_mean"} if "fc_norm.weight" in tensors and "norm.weight" not in tensors else {}


TIMM = KeyTable(
    name="timm",
    signature=_SIGNATURE,
    fields={"position_interpolation": "bicubic_antialias"},
    read_fields=_read_pooling,
)

# Google's weights, with which timm uses other epsilons than Google
TIMM_HYBRID = replace(
    TIMM,
    name="timm hybrid",
    signature=(*_SIGNATURE, r"patch_embed\.backbone\.(stem\.)?conv\.weight"),
    fields={
        **TIMM.fields,
        "resnet_padding": "same",
        "weight_eps": 1e-8,
        "weight_eps_place": "variance",
        "group_norm_eps": 1e-5,
        "projection_norm": "group",
    },
    fields_type=HybridFields,
)

# github.com/facebookresearch/deit saves timm's models under "model"
DEIT = KeyTable(
    name="DeiT",
    signature=_SIGNATURE,
    fields={"layer_norm_eps": 1e-6, "gelu": "erf", "position_interpolation": "bicubic"},
    wrapper="model",
    read_fields=_read_pooling,  # MAE fine-tunes with the mean of the patches
)

# github.com/facebookresearch/convit, and timm's ConViT
CONVIT = KeyTable(
    name="ConViT",
    signature=(r"patch_embed\.proj\.weight", r"blocks\.\d+\.attn\.gating_param"),
    fields={"layer_norm_eps": 1e-6, "gelu": "erf", "position_interpolation": "bicubic"},
    fields_type=ConViTFields,
)

# github.com/yitu-opensource/T2T-ViT
T2T_VIT = KeyTable(
    name="T2T-ViT",
    signature=(r"tokens_to_token\.attention1\..+", r"blocks\.\d+\..+"),
    fields={"layer_norm_eps": 1e-5, "position_interpolation": "bicubic"},
    unsupported=(
        (r"blocks\..+\.(se_layer|dense_linear|cheap_operation\w+)\..+", "T2T-ViT's variant SE, Dense or Ghost"),
    ),
    fields_type=T2TViTFields,
)

# a ConViT and a hybrid also have all keys of a ViT
TABLES: tuple[KeyTable, ...] = (CONVIT, T2T_VIT, TIMM_HYBRID, DEIT, TIMM)
