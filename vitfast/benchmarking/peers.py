"""Models of other libraries with the same architecture and weights."""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from vitfast.errors import UserError, import_optional
from vitfast.models import ImageModel, ViTFields
from vitfast.weights.key_tables.key_table import map_keys
from vitfast.weights.key_tables.torchvision import TORCHVISION


class Unavailable(Exception):
    """A library or engine is not installed or does not support the model or precision; the message says which."""


def import_peer(module: str) -> Any:
    """Imports a module of another library, as ``import_optional``; raises Unavailable if it is not installed."""
    try:
        return import_optional(module, "the comparison")
    except UserError as error:
        raise Unavailable(str(error)) from error


def torchvision_model(model: ImageModel) -> nn.Module:
    """Builds torchvision's Vision Transformer with the architecture and a copy of the weights of ``model``."""
    from torchvision.models.vision_transformer import VisionTransformer as TorchvisionModel

    fields = _plain_fields(model, "torchvision", distillation_token=("none",), qkv_bias=(True,))
    other = TorchvisionModel(
        image_size=fields.img_size,
        patch_size=fields.patch_size,
        num_layers=fields.depth,
        num_heads=fields.num_heads,
        hidden_dim=fields.embed_dim,
        mlp_dim=fields.mlp_dim,
        num_classes=fields.num_classes,
        norm_layer=functools.partial(nn.LayerNorm, eps=fields.layer_norm_eps),
    )
    if fields.in_chans != 3:  # torchvision's class supports three channels only, but no other layer depends on them
        other.conv_proj = nn.Conv2d(fields.in_chans, fields.embed_dim, fields.patch_size, fields.patch_size)
    return _with_weights(other, model)


def timm_model(model: ImageModel) -> nn.Module:
    """Builds timm's Vision Transformer or distilled DeiT with the architecture and a copy of ``model``'s weights."""
    VisionTransformerDistilled = import_peer("timm.models.deit").VisionTransformerDistilled
    TimmModel = import_peer("timm.models.vision_transformer").VisionTransformer
    fields = _plain_fields(model, "timm", distillation_token=("none", "after_class"))
    names = "img_size patch_size in_chans num_classes embed_dim depth num_heads mlp_ratio qkv_bias".split()
    other: nn.Module = (TimmModel if fields.distillation_token == "none" else VisionTransformerDistilled)(
        norm_layer=functools.partial(nn.LayerNorm, eps=fields.layer_norm_eps),
        **{name: getattr(fields, name) for name in names},
    )
    if isinstance(other, VisionTransformerDistilled):
        other.set_distilled_training(True)  # returns both heads' logits in training, as vitfast does
    return _with_weights(other, model)


def parameters_by_name(module: nn.Module) -> dict[str, Tensor]:
    """The parameters of vitfast's, timm's or torchvision's model, also compiled, under vitfast's names."""
    parameters: dict[str, Tensor] = {name.removeprefix("_orig_mod."): one for name, one in module.named_parameters()}
    if "conv_proj.weight" not in parameters:
        return parameters
    mapped, unmatched = map_keys(parameters, TORCHVISION.rules, "torchvision")
    assert not unmatched, unmatched
    return mapped


def _plain_fields(model: ImageModel, library: str, **allowed: Collection[Any]) -> ViTFields:
    """Returns the fields of a variant that the library supports; ``allowed``: field -> values."""
    if type(model.fields) is not ViTFields:
        raise Unavailable(f"{library} has another form of {model.model_name}, which is not compared")
    fields: ViTFields = model.fields
    allowed |= {"patch_order": ["channels_first"], "pooling": ["token"], "gelu": ["erf"]}
    allowed |= {"head_type": ["linear"], "head_hidden_dim": [0, None]}
    for name, values in allowed.items():
        if (value := getattr(fields, name)) not in values:
            raise Unavailable(f"{library} has no ViT with {name}={value}")
    return fields


def _with_weights(other: nn.Module, model: ImageModel) -> nn.Module:
    """Copies all weights, and brings the module to the model's device, type and mode."""
    targets, weights = parameters_by_name(other), dict(model.named_parameters())
    assert targets.keys() == weights.keys(), targets.keys() ^ weights.keys()
    parameter = next(model.parameters())
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(weights[name])
    return other.to(parameter.device, parameter.dtype).train(model.training)


def compiled(model: nn.Module, **options: Any) -> nn.Module:
    """Returns a model compiled for fixed shapes."""
    result: Any = torch.compile(model, dynamic=False, **options)
    return result  # type: ignore[no-any-return]


def failure(error: Exception) -> str:
    """Why a library or engine is left out, in one line."""
    if isinstance(error, Unavailable):
        return str(error)
    lines = str(error).strip().splitlines()
    return f"failed: {type(error).__name__}: {lines[0] if lines else ''}"
