"""The Dynamic Vision Transformer's fields and architectures; ``dvt`` has the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from vitfast.layers.patch_embed import padded_grid_size
from vitfast.layers.tokens_to_token import tokens_to_token_grid_size
from vitfast.models.model_fields import TransformerFields, check_field
from vitfast.models.t2t_vit import T2T_VIT_SIZES

Backbone = Literal["vit", "conv_vit", "t2t_vit", "t2t_vit_t"]

_PER_EXIT = ("patch_sizes", "patch_strides", "patch_paddings")


@dataclass(frozen=True)
class DVTFields(TransformerFields):
    """The fields of a Dynamic Vision Transformer (Wang et al., 2021); the defaults are those over DeiT-S.

    Every exit is a transformer on the same image, divided into a different grid; ``embed_dim`` and the fields after it
    apply to every exit. ``patch_sizes`` has one number per exit. Image size and patches determine ``grid_sizes``.

    Attributes:
        backbone: ``"vit"``: patches that do not overlap, learned positions; ``"t2t_vit"``: the tokens-to-token module
            with performers, sinusoidal positions; ``"t2t_vit_t"``: the same with transformers; ``"conv_vit"``: small
            convolutions, see ``ConvStem``, learned positions.
        patch_sizes: for each exit the height and width of a patch in pixels; in T2T-ViT, of the first soft split; in
            ``"conv_vit"`` the pixels along a side of a token, a power of 2, at least 4.
        patch_strides: for each exit the distance between patches; equal to ``patch_sizes`` except in T2T-ViT.
        patch_paddings: for each exit the zeros around the image.
        feature_reuse: whether the blocks of an exit read the output of the previous exit's last block.
        relation_reuse: whether the attention of an exit adds the attention logits of the previous one.
        reuse_dim: channels of the reused features in a block.
        reuse_hidden_dim: hidden width of the MLP that computes them.
        token_dim: as in ``T2TViTFields``; not used by ``"vit"``.
        token_drop_rate: as in ``T2TViTFields``; not used by ``"vit"``.
    """

    backbone: Backbone = "vit"
    patch_sizes: tuple[int, ...] = (32, 23, 16)
    patch_strides: tuple[int, ...] = (32, 23, 16)
    patch_paddings: tuple[int, ...] = (0, 3, 0)
    feature_reuse: bool = True
    relation_reuse: bool = True
    reuse_dim: int = 48
    reuse_hidden_dim: int = 128
    token_dim: int = 64
    token_drop_rate: float = 0.1

    def __post_init__(self) -> None:
        self._to_tuples(*_PER_EXIT)
        super().__post_init__()
        self._check_at_least(1, "reuse_dim", "reuse_hidden_dim")
        self._check_at_least(2, "token_dim")
        self._check_rates("token_drop_rate")
        self._check_patches()

    @property
    def num_exits(self) -> int:
        """Number of exits."""
        return len(self.patch_sizes)

    @property
    def grid_sizes(self) -> tuple[int, ...]:
        """For each exit the tokens along a side."""
        return tuple(
            padded_grid_size(self.img_size, size, padding)
            if self.backbone in ("vit", "conv_vit")
            else tokens_to_token_grid_size(self.img_size, size, stride, padding)
            for size, stride, padding in zip(self.patch_sizes, self.patch_strides, self.patch_paddings, strict=True)
        )

    def _check_patches(self) -> None:
        rule = "must have at least two numbers, one per exit"
        check_field(self.num_exits >= 2, "patch_sizes", self.patch_sizes, rule)
        for name, minimum in zip(_PER_EXIT, (1, 1, 0), strict=True):
            values = getattr(self, name)
            rule = f"must have as many numbers as patch_sizes, {self.num_exits}"
            check_field(len(values) == self.num_exits, name, values, rule)
            check_field(min(values) >= minimum, name, values, f"must have numbers of at least {minimum}")
        if self.backbone in ("vit", "conv_vit"):
            why = ", whose patches do not overlap" if self.backbone == "vit" else ""
            rule = f"must equal patch_sizes={self.patch_sizes} for backbone={self.backbone!r}{why}"
            check_field(self.patch_strides == self.patch_sizes, "patch_strides", self.patch_strides, rule)
        if self.backbone == "conv_vit":
            self._check_stem()
        rule = f"is too small for patch_sizes={self.patch_sizes} with patch_paddings={self.patch_paddings}"
        check_field(min(self.grid_sizes) >= 1, "img_size", self.img_size, rule)

    def _check_stem(self) -> None:
        sizes = self.patch_sizes
        rule = "must be powers of 2, at least 4, for backbone='conv_vit', whose convolutions halve the grid"
        check_field(all(size >= 4 and size & (size - 1) == 0 for size in sizes), "patch_sizes", sizes, rule)
        divides = not any(self.img_size % size for size in sizes)
        check_field(divides, "img_size", self.img_size, f"must be a multiple of every patch size of {sizes}")
        rule = "must be zeros for backbone='conv_vit', whose convolutions pad"
        check_field(not any(self.patch_paddings), "patch_paddings", self.patch_paddings, rule)
        rule = "must be a multiple of 4 for backbone='conv_vit', whose first convolution has a quarter of them"
        check_field(self.embed_dim % 4 == 0, "embed_dim", self.embed_dim, rule)


_SMALL_PATCHES: dict[str, Any] = {"patch_sizes": (8, 4), "patch_strides": (8, 4), "patch_paddings": (0, 0)}

DVT_ARCHITECTURES: dict[str, DVTFields] = {
    # exits at 7 x 7, 10 x 10 and 14 x 14 tokens
    "dvt_deit_small": DVTFields(),
    **{
        f"dvt_t2t_vit_{size}": DVTFields(
            backbone="t2t_vit",
            patch_sizes=(14, 11, 7),
            patch_strides=(8, 6, 4),
            patch_paddings=(3, 5, 2),
            layer_norm_eps=1e-5,
            qkv_bias=False,
            **T2T_VIT_SIZES[size],
        )
        for size in (12, 14)
    },
    # small images: exits at 4 x 4 and 8 x 8 tokens for CIFAR, at 2 x 2 and 4 x 4 for the handwritten digits
    "dvt_mini_32": DVTFields(
        img_size=32, embed_dim=128, depth=6, num_heads=4, reuse_dim=24, reuse_hidden_dim=64, **_SMALL_PATCHES
    ),
    "dvt_nano_16": DVTFields(
        img_size=16, in_chans=1, embed_dim=64, depth=4, num_heads=4, reuse_dim=16, reuse_hidden_dim=32, **_SMALL_PATCHES
    ),
}

# the original code's names
DVT_ALIASES = {
    "DVT_Deit_small": "dvt_deit_small",
    "DVT_T2t_vit_12": "dvt_t2t_vit_12",
    "DVT_T2t_vit_14": "dvt_t2t_vit_14",
}
