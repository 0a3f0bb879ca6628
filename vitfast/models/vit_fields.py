"""What defines a plain ViT or DeiT, down to the details that published systems disagree on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitfast.errors import UserError
from vitfast.layers.mlp import GeluVariant
from vitfast.layers.patch_embed import PatchOrder
from vitfast.models.field_checks import check_field
from vitfast.models.transformer_fields import TransformerFields

HeadType = Literal["linear", "norm_linear"]
Pooling = Literal["token", "mean"]
DistillationToken = Literal["none", "after_class", "last"]


@dataclass(frozen=True)
class ViTFields(TransformerFields):
    """Every field of a plain ViT or DeiT; the defaults are timm's, that is Google's ViT and Facebook's DeiT.

    Positions are learned, and the class token comes first, in every one of these systems, so neither is a field.

    Attributes:
        img_size: height and width of the images in pixels, a multiple of ``patch_size``.
        layer_norm_eps: epsilon of every LayerNorm. 1e-5 in myrtle-vision, Pytorch-VIT and vissl's first ViT.
        qkv_bias: whether q, k and v have biases. Not in myrtle-vision v1.0.0 and vissl.
        patch_size: height and width of a patch in pixels.
        patch_order: order of a patch's pixels, see ``PatchEmbed``. ``"channels_last"`` in myrtle-vision.
        distillation_token: ``"after_class"``: at index 1, with a position, heads averaged in evaluation (DeiT);
            ``"last"``: after the patches, without a position, in training only (myrtle-vision). See
            ``DistilledVisionTransformer``.
        pooling: what the head reads: the class ``"token"``, or the ``"mean"`` of all tokens but the distillation token
            (Pytorch-VIT).
        head_type: ``"linear"``: one LayerNorm over all tokens, then pooling and a linear head; ``"norm_linear"``:
            pooling, then each head's own LayerNorm and linear layer (myrtle-vision, Pytorch-VIT). For a single head on
            the class token they compute the same.
        head_hidden_dim: width of a layer before the head, linear and tanh, as Google pre-trains (vissl's
            ``vision_transformer_head`` with a ``hidden_dim``); 0 for none. Not with a distillation token.
        gelu: ``"erf"``, or ``"tanh"`` as Google's JAX models.

    The others are as in ``TransformerFields``.

    Raises:
        UserError: a field has a wrong type or value, or fields contradict each other.
    """

    embed_dim: int = 768
    num_heads: int = 12
    patch_size: int = 16
    patch_order: PatchOrder = "channels_first"
    distillation_token: DistillationToken = "none"
    pooling: Pooling = "token"
    head_type: HeadType = "linear"
    head_hidden_dim: int = 0
    gelu: GeluVariant = "erf"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_field(self.patch_size >= 1, "patch_size", self.patch_size, "must be at least 1")
        check_field(
            self.head_hidden_dim >= 0, "head_hidden_dim", self.head_hidden_dim, "must be at least 1, or 0 for none"
        )
        self._check_patches()
        if self.pooling == "mean" and self.distillation_token == "after_class":
            raise UserError(
                "pooling='mean' does not go with distillation_token='after_class', whose heads read one token each; "
                "use pooling='token', or distillation_token='none' or 'last'"
            )
        if self.head_hidden_dim and self.distillation_token != "none":
            raise UserError(
                f"head_hidden_dim={self.head_hidden_dim} does not go with distillation_token="
                f"{self.distillation_token!r}, whose heads are linear; use head_hidden_dim=0"
            )

    @property
    def grid_size(self) -> int:
        """Patches along a side."""
        return self.img_size // self.patch_size

    @property
    def num_prefix_positions(self) -> int:
        """Tokens before the patches that have a position embedding."""
        return 2 if self.distillation_token == "after_class" else 1

    def _check_patches(self) -> None:
        if self.img_size % self.patch_size == 0:
            return
        below = self.img_size // self.patch_size * self.patch_size
        sizes = f"{below} or {below + self.patch_size}" if below else f"{self.patch_size}"
        raise UserError(
            f"img_size={self.img_size} is no multiple of patch_size={self.patch_size}; "
            f"the nearest img_size that works: {sizes}"
        )

    def _check_heads(self) -> None:
        if self.embed_dim % self.num_heads == 0:
            return
        below = self.embed_dim // self.num_heads * self.num_heads
        dims = f"{below} or {below + self.num_heads}" if below else f"{self.num_heads}"
        raise UserError(
            f"embed_dim={self.embed_dim} is no multiple of num_heads={self.num_heads}; "
            f"the nearest embed_dim that works: {dims}"
        )
