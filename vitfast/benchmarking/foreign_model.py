"""The same architecture with the same weights, built by torchvision and by timm."""

from __future__ import annotations

import functools
import re

import torch
from torch import Tensor, nn

from vitfast.models import ImageModel, ViTFields


class Unavailable(Exception):
    """A library is not installed or does not know the architecture; the message says which."""


# vitfast's (and timm's) parameter names -> torchvision's, applied in this order
_TORCHVISION_NAMES = (
    (r"^cls_token$", "class_token"),
    (r"^pos_embed$", "encoder.pos_embedding"),
    (r"^patch_embed\.proj\.", "conv_proj."),
    (r"^norm\.", "encoder.ln."),
    (r"^head\.", "heads.head."),
    (r"^blocks\.(\d+)\.", r"encoder.layers.encoder_layer_\1."),
    (r"\.norm([12])\.", r".ln_\1."),
    (r"\.attn\.qkv\.", ".self_attention.in_proj_"),
    (r"\.attn\.proj\.", ".self_attention.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.3."),
)


def torchvision_name(name: str) -> str:
    """Turns a parameter's name in vitfast into its name in torchvision's ``VisionTransformer``."""
    for pattern, replacement in _TORCHVISION_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def torchvision_model(model: ImageModel) -> nn.Module:
    """Builds torchvision's Vision Transformer with the architecture and a copy of the weights of ``model``.

    Raises:
        Unavailable: torchvision's class does not have this architecture.
    """
    from torchvision.models.vision_transformer import VisionTransformer as TorchvisionModel

    fields = _plain_fields(model, "torchvision")
    if not fields.qkv_bias or fields.distillation_token != "none":
        raise Unavailable("torchvision has no ViT with a distillation token or without q, k, v biases")
    foreign = TorchvisionModel(
        image_size=fields.img_size,
        patch_size=fields.patch_size,
        num_layers=fields.depth,
        num_heads=fields.num_heads,
        hidden_dim=fields.embed_dim,
        mlp_dim=fields.mlp_dim,
        num_classes=fields.num_classes,
        norm_layer=functools.partial(nn.LayerNorm, eps=fields.layer_norm_eps),
    )
    if fields.in_chans != 3:  # torchvision fixes three channels; everything else in it is independent of them
        foreign.conv_proj = nn.Conv2d(fields.in_chans, fields.embed_dim, fields.patch_size, fields.patch_size)
    return _with_weights(foreign, {torchvision_name(name): value for name, value in model.state_dict().items()}, model)


def timm_model(model: ImageModel) -> nn.Module:
    """Builds timm's Vision Transformer or distilled DeiT with the architecture and a copy of the weights of ``model``.

    Raises:
        Unavailable: timm is not installed, or its class does not have this architecture.
    """
    try:
        from timm.models.deit import VisionTransformerDistilled
        from timm.models.vision_transformer import VisionTransformer as TimmModel
    except ImportError as error:
        raise Unavailable("not installed: pip install timm") from error

    fields = _plain_fields(model, "timm")
    is_distilled = fields.distillation_token == "after_class"
    foreign: nn.Module = (VisionTransformerDistilled if is_distilled else TimmModel)(
        img_size=fields.img_size,
        patch_size=fields.patch_size,
        in_chans=fields.in_chans,
        num_classes=fields.num_classes,
        embed_dim=fields.embed_dim,
        depth=fields.depth,
        num_heads=fields.num_heads,
        mlp_ratio=fields.mlp_ratio,
        qkv_bias=fields.qkv_bias,
        norm_layer=functools.partial(nn.LayerNorm, eps=fields.layer_norm_eps),
    )
    if is_distilled:
        assert isinstance(foreign, VisionTransformerDistilled)
        foreign.set_distilled_training(True)  # both heads' logits while training, as vitfast returns them
    return _with_weights(foreign, model.state_dict(), model)


def gradients(module: nn.Module, names: list[str], *, rename: bool) -> list[Tensor]:
    """Collects the gradients of parameters by vitfast's names, zeros where there is none.

    Args:
        module: vitfast's model or a foreign one.
        names: vitfast's names, in the wanted order.
        rename: whether the module has torchvision's names.
    """
    parameters = dict(module.named_parameters())
    found = [parameters[torchvision_name(name) if rename else name] for name in names]
    return [torch.zeros_like(one) if one.grad is None else one.grad for one in found]


def _plain_fields(model: ImageModel, library: str) -> ViTFields:
    """Returns the fields, unless they are of a variant that neither library has."""
    if type(model.fields) is not ViTFields:
        raise Unavailable(f"{library} has its own form of {model.model_name}, which is not compared")
    fields: ViTFields = model.fields
    is_plain = (
        fields.patch_order == "channels_first"
        and fields.distillation_token != "last"
        and fields.pooling == "token"
        and fields.head_type == "linear"
        and not fields.head_hidden_dim
        and fields.gelu == "erf"
    )
    if not is_plain:
        raise Unavailable(f"{library} has no ViT with this model's patch order, tokens, pooling, head or GELU")
    return fields


def _with_weights(foreign: nn.Module, state: dict[str, Tensor], like: ImageModel) -> nn.Module:
    """Loads a state strictly and brings the module to the other's device, type and mode."""
    foreign.load_state_dict(state)
    parameter = next(like.parameters())
    return foreign.to(parameter.device, parameter.dtype).train(like.training)
