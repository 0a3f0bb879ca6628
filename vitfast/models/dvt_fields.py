"""What defines a Dynamic Vision Transformer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vitfast.layers.patch_embed import padded_grid_size
from vitfast.layers.tokens_to_token import tokens_to_token_grid_size
from vitfast.models.field_checks import check_field
from vitfast.models.transformer_fields import TransformerFields

Backbone = Literal["vit", "conv_vit", "t2t_vit", "t2t_vit_t"]

_PER_EXIT = ("patch_sizes", "patch_strides", "patch_paddings")


@dataclass(frozen=True)
class DVTFields(TransformerFields):
    """Every field of a Dynamic Vision Transformer (Wang et al., 2021); the defaults are those over DeiT-S.

    An exit is a transformer of its own on the same image, cut into a grid of its own; ``embed_dim`` and all that
    follows it hold for every exit. There are as many exits as ``patch_sizes`` has numbers. The grids follow from the
    image size and the patches: see ``grid_sizes``.

    Attributes:
        backbone: ``"vit"``: patches that do not overlap, learned positions; ``"t2t_vit"``: the tokens-to-token module
            with performers, sinusoidal positions; ``"t2t_vit_t"``: the same with transformers; ``"conv_vit"``: small
            convolutions, see ``ConvStem``, learned positions.
        patch_sizes: for each exit the height and width of a patch in pixels; in T2T-ViT, of the first soft split; in
            ``"conv_vit"`` the pixels a side that a token stands for, a power of 2, at least 4.
        patch_strides: for each exit the distance between patches; ``patch_sizes`` again without T2T-ViT.
        patch_paddings: for each exit the zeros around the image.
        feature_reuse: whether the blocks of an exit read what the last block of the previous one gave.
        relation_reuse: whether the attention of an exit starts from the logits of the previous one.
        reuse_dim: channels that a block makes of the features it reads.
        reuse_hidden_dim: hidden width of the perceptron that makes them.
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
        for name in _PER_EXIT:  # JSON and the command line have lists
            value = getattr(self, name)
            if isinstance(value, Sequence) and not isinstance(value, str):
                object.__setattr__(self, name, tuple(value))
        super().__post_init__()
        for name in ("reuse_dim", "reuse_hidden_dim"):
            check_field(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        check_field(self.token_dim >= 2, "token_dim", self.token_dim, "must be at least 2")
        self._check_rate("token_drop_rate")
        self._check_patches()

    @property
    def num_exits(self) -> int:
        """How many exits there are."""
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
        check_field(self.num_exits >= 2, "patch_sizes", self.patch_sizes, "must have at least two numbers, one an exit")
        for name, least in zip(_PER_EXIT, (1, 1, 0), strict=True):
            values = getattr(self, name)
            rule = f"must have as many numbers as patch_sizes, {self.num_exits}"
            check_field(len(values) == self.num_exits, name, values, rule)
            check_field(min(values) >= least, name, values, f"must have numbers of at least {least}")
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
