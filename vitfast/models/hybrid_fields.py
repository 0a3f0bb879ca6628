"""What defines a hybrid of a ResNet and a ViT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vitfast.errors import UserError
from vitfast.layers.resnet import NUM_GROUPS, resnet_grid_size
from vitfast.layers.std_conv import ProjectionNorm, ResNetConventions, ResNetPadding, WeightEpsPlace
from vitfast.models.field_checks import check_field
from vitfast.models.vit_fields import ViTFields


@dataclass(frozen=True)
class HybridFields(ViTFields):
    """The fields of a hybrid: those of a ViT, and of the ResNet in front. The defaults are Google's R50+ViT-B/16.

    timm and ViT-pytorch (jeonsworld) load Google's weights and compute something slightly different with them: see the
    table in ``ResNetConventions``, whose fields these are.

    Attributes:
        img_size: height and width of the images in pixels.
        patch_size: height and width of a patch in features of the ResNet, which divides their number along a side.
        patch_order: ``"channels_first"``; hybrids have no other.
        distillation_token: ``"none"``; hybrids have no other form.
        resnet_layers: bottlenecks of each stage of the ResNet; an empty list leaves its stem alone. Every stage but the
            first halves the size.
        resnet_width: channels of the stem, a multiple of 32.
        resnet_padding: ``"same"``, or ``"symmetric"`` in ViT-pytorch.
        weight_eps: guards the standardization of kernels; above 0. 1e-8 in timm.
        weight_eps_place: added to the ``"deviation"``, or to the ``"variance"`` in timm and ViT-pytorch.
        group_norm_eps: epsilon of the GroupNorms. 1e-5 in timm.
        projection_norm: ``"group"``, or ``"channel"`` in ViT-pytorch.

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
        layers = self.resnet_layers
        if isinstance(layers, Sequence) and not isinstance(layers, str):  # JSON and the command line have lists
            object.__setattr__(self, "resnet_layers", tuple(layers))
        super().__post_init__()
        for name in ("weight_eps", "group_norm_eps"):
            check_field(getattr(self, name) > 0.0, name, getattr(self, name), "must be above 0, for example 1e-5")

    @property
    def feature_size(self) -> int:
        """Features of the ResNet along a side."""
        return resnet_grid_size(self.img_size, len(self.resnet_layers), self.resnet_padding)

    @property
    def grid_size(self) -> int:
        """Patches along a side."""
        return self.feature_size // self.patch_size

    @property
    def conventions(self) -> ResNetConventions:
        """What published ResNets disagree on."""
        return ResNetConventions(
            padding=self.resnet_padding,
            weight_eps=self.weight_eps,
            weight_eps_place=self.weight_eps_place,
            group_norm_eps=self.group_norm_eps,
            projection_norm=self.projection_norm,
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
            f"img_size={self.img_size} gives {self.feature_size} features along a side, which patch_size="
            f"{self.patch_size} does not divide; the nearest img_size that works: {nearest}"
        )

    def _fits(self, img_size: int) -> bool:
        features = resnet_grid_size(img_size, len(self.resnet_layers), self.resnet_padding)
        return features > 0 and features % self.patch_size == 0
