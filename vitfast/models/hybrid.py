"""The hybrid of a ResNet and a Vision Transformer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from vitfast.errors import UserError
from vitfast.layers import Bottleneck, HybridEmbed, StdConv2d
from vitfast.layers.resnet import NUM_GROUPS, resnet_grid_size
from vitfast.layers.std_conv import ProjectionNorm, ResNetConventions, ResNetPadding, WeightEpsPlace
from vitfast.models.model_fields import check_field
from vitfast.models.vit import VIT_SIZES, VisionTransformer, ViTFields


@dataclass(frozen=True)
class HybridFields(ViTFields):
    """The fields of a hybrid: those of a ViT and of the ResNet in front. The defaults are Google's R50+ViT-B/16.

    timm and ViT-pytorch (jeonsworld) load Google's weights but compute slightly different outputs: see the table in
    ``ResNetConventions``.

    Attributes:
        img_size: height and width of the images in pixels.
        patch_size: height and width of a patch in features of the ResNet; divides their number along a side.
        patch_order: ``"channels_first"``; hybrids have no other.
        distillation_token: ``"none"``; hybrids have no other form.
        resnet_layers: bottlenecks of each stage of the ResNet; empty: the stem only. Every stage except the first
            halves the size.
        resnet_width: channels of the stem, a multiple of 32.
        resnet_padding: ``padding`` of ``ResNetConventions``; the remaining fields have the same names there.

    Raises:
        UserError: as ``ViTFields``.
    """

    patch_size: int = 1
    patch_order: Literal["channels_first"] = "channels_first"
    distillation_token: Literal["none"] = "none"
    resnet_layers: tuple[int, ...] = (3, 4, 9)
    resnet_width: int = 64
    resnet_padding: ResNetPadding = "same"
    weight_eps: float = 1e-5
    weight_eps_place: WeightEpsPlace = "deviation"
    group_norm_eps: float = 1e-6
    projection_norm: ProjectionNorm = "group"

    def __post_init__(self) -> None:
        self._to_tuples("resnet_layers")
        super().__post_init__()
        for name in ("weight_eps", "group_norm_eps"):
            check_field(getattr(self, name) > 0.0, name, getattr(self, name), "must be above 0, for example 1e-5")

    @property
    def grid_size(self) -> int:
        """Patches along a side."""
        return self._num_features(self.img_size) // self.patch_size

    @property
    def conventions(self) -> ResNetConventions:
        """The details on which published ResNets disagree."""
        return ResNetConventions(
            self.resnet_padding, self.weight_eps, self.weight_eps_place, self.group_norm_eps, self.projection_norm
        )

    def _check_patches(self) -> None:
        width = self.resnet_width
        check_field(
            width >= NUM_GROUPS and width % NUM_GROUPS == 0,
            "resnet_width",
            width,
            f"must be a multiple of {NUM_GROUPS}, the groups of its norms",
        )
        layers = self.resnet_layers
        check_field(min(layers, default=1) >= 1, "resnet_layers", layers, "must have numbers of at least 1")
        if self._fits(self.img_size):
            return
        sizes = range(1, self.img_size + 8 * 2 ** len(layers) * self.patch_size)
        nearest = min(filter(self._fits, sizes), key=lambda size: abs(size - self.img_size))
        raise UserError(
            f"img_size={self.img_size} gives {self._num_features(self.img_size)} features along a side, which is not a "
            f"multiple of patch_size={self.patch_size}; the nearest img_size that works: {nearest}"
        )

    def _num_features(self, img_size: int) -> int:
        """Returns the features of the ResNet along a side."""
        return resnet_grid_size(img_size, len(self.resnet_layers), self.resnet_padding)

    def _fits(self, img_size: int) -> bool:
        features = self._num_features(img_size)
        return features > 0 and features % self.patch_size == 0


# timm's name without the image size -> fields; Google's vit_jax/configs/models.py
_HYBRIDS: dict[str, dict[str, Any]] = {
    # including the pooling of the stem its patches are 32 pixels wide, although both names say otherwise
    "vit_tiny_r_s16_p8": {"resnet_layers": (), "patch_size": 8, **VIT_SIZES["tiny"]},
    "vit_small_r26_s32": {"resnet_layers": (2, 2, 2, 2), **VIT_SIZES["small"]},
    "vit_base_r26_s32": {"resnet_layers": (2, 2, 2, 2), **VIT_SIZES["base"]},
    # a ResNet-50 without its last stage, whose bottlenecks are appended to the third, for a stride of 16
    "vit_base_r50_s16": {"resnet_layers": (3, 4, 9), **VIT_SIZES["base"]},
    "vit_large_r50_s32": {"resnet_layers": (3, 4, 6, 3), **VIT_SIZES["large"]},
}

HYBRID_ARCHITECTURES = {
    f"{name}_{img}": HybridFields(img_size=img, **fields) for name, fields in _HYBRIDS.items() for img in (224, 384)
}

# Google's and ViT-pytorch's names, without an image size: 224 unless img_size is given
HYBRID_ALIASES = {
    "R+ViT-Ti_16": "vit_tiny_r_s16_p8_224",
    "R26+ViT-S_32": "vit_small_r26_s32_224",
    "R26+ViT-B_32": "vit_base_r26_s32_224",
    "R50+ViT-B_16": "vit_base_r50_s16_224",
    "R50-ViT-B_16": "vit_base_r50_s16_224",
    "R50+ViT-L_32": "vit_large_r50_s32_224",
}


class HybridViT(VisionTransformer):
    """The hybrid of Dosovitskiy et al. (2021), section 3.1: a ViT over a ResNet's features, with timm's names."""

    fields: HybridFields

    def __init__(self, model_name: str, fields: HybridFields) -> None:
        super().__init__(model_name, fields)
        self.patch_embed = HybridEmbed(  # type: ignore[assignment]
            fields.img_size,
            fields.patch_size,
            fields.in_chans,
            fields.embed_dim,
            layers=fields.resnet_layers,
            width=fields.resnet_width,
            conventions=fields.conventions,
        )
        # as Google does: every bottleneck starts as its shortcut
        for module in self.patch_embed.modules():
            if isinstance(module, StdConv2d):
                nn.init.trunc_normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            elif isinstance(module, Bottleneck):
                nn.init.zeros_(module.norm3.weight)
