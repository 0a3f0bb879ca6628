"""The Vision Transformer: fields, architectures (also DeiT's) and model."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitfast.errors import UserError
from vitfast.layers import AddPositions, AttentionPool, JoinTokens, LayerNorm, PatchEmbed
from vitfast.layers.mlp import GeluVariant
from vitfast.layers.patch_embed import PatchOrder
from vitfast.layers.rotary import ROTARY_SCHEMES, RotaryName
from vitfast.models.model_fields import TransformerFields, check_field
from vitfast.models.transformer import TransformerModel, initialize_linear, transformer_blocks

HeadType = Literal["linear", "norm_linear"]
Pooling = Literal["token", "mean", "patch_mean", "map"]
DistillationToken = Literal["none", "after_class", "last"]


@dataclass(frozen=True)
class ViTFields(TransformerFields):
    """The fields of a ViT, DeiT, DINOv2, DINOv3, CLIP, SigLIP or EVA-02.

    The defaults are those of Google's ViT and Facebook's DeiT.
    All supported systems have the class token first and registers after it, so this is no field.

    Attributes:
        img_size: height and width of the images in pixels, a multiple of ``patch_size``.
        layer_norm_eps: epsilon of every LayerNorm. 1e-5 in myrtle-vision, Pytorch-VIT and vissl's first ViT.
        qkv_bias: whether q, k and v have biases. Not in myrtle-vision v1.0.0 and vissl.
        key_bias: whether k has a bias where q and v do. Not in EVA-02 and DINOv3.
        patch_size: height and width of a patch in pixels.
        patch_order: order of a patch's pixels, see ``PatchEmbed``. ``"channels_last"`` in myrtle-vision.
        distillation_token: ``"after_class"``: at index 1, with a position, heads averaged in evaluation (DeiT);
            ``"last"``: after the patches, without a position, in training only (myrtle-vision). See
            ``DistilledVisionTransformer``.
        class_token: whether there is one. Not in SigLIP.
        register_tokens: number of learned tokens between the class token and the patches (Darcet et al., 2024).
        learned_positions: whether position embeddings are added to the tokens. Not in DINOv3.
        rotary: rotary position embedding of the patches' q and k, ``"dinov3"`` or ``"eva02"``, see
            ``vitfast.layers.rotary``; both adapt to the image size. ``"none"`` in the others.
        prefix_positions: whether the class token and the registers have positions. Not in DINOv2 with registers.
        pre_norm: whether a LayerNorm follows the position embedding, and patches have no bias (CLIP).
        layer_scale: initial value of the ``LayerScale`` of every branch; 0 for none. 1e-5 in DINOv2 and DINOv3.
        gated_mlp: whether MLPs are SwiGLUs, see ``GatedMlp``; ``mlp_ratio`` then counts both halves (DINOv2's giant,
            EVA-02).
        mlp_norm: whether a LayerNorm precedes the last layer of a gated MLP (EVA-02 from base on).
        attention_norm: whether a LayerNorm precedes the output projection of the attention (EVA-02's CLIP).
        pooling: the head's input: the class ``"token"``, the ``"mean"`` of all tokens except the distillation token
            (Pytorch-VIT), the ``"patch_mean"``, without class token and registers (EVA-02, timm's
            ``global_pool="avg"``), or ``"map"``, see ``AttentionPool`` (SigLIP).
        head_type: ``"linear"``: one LayerNorm over all tokens, then pooling and a linear head; ``"norm_linear"``:
            pooling, then for each head a LayerNorm and a linear layer (myrtle-vision, Pytorch-VIT). For a single head
            on the class token both compute the same.
        head_hidden_dim: width of a layer before the head, linear and tanh, as in Google's pre-training (vissl's
            ``vision_transformer_head`` with a ``hidden_dim``); 0 for none. Not with a distillation token.
        gelu: ``"erf"``, ``"tanh"`` as in Google's JAX models, or ``"quick"`` as in OpenAI's CLIP.

    The others are as in ``TransformerFields``.

    Raises:
        UserError: a field has a wrong type or value, or fields contradict each other.
    """

    embed_dim: int = 768
    num_heads: int = 12
    key_bias: bool = True
    patch_size: int = 16
    patch_order: PatchOrder = "channels_first"
    distillation_token: DistillationToken = "none"
    class_token: bool = True
    register_tokens: int = 0
    learned_positions: bool = True
    rotary: RotaryName = "none"
    prefix_positions: bool = True
    pre_norm: bool = False
    layer_scale: float = 0.0
    gated_mlp: bool = False
    mlp_norm: bool = False
    attention_norm: bool = False
    pooling: Pooling = "token"
    head_type: HeadType = "linear"
    head_hidden_dim: int = 0
    gelu: GeluVariant = "erf"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least(1, "patch_size")
        check_field(
            self.head_hidden_dim >= 0, "head_hidden_dim", self.head_hidden_dim, "must be at least 1, or 0 for none"
        )
        self._check_patches()
        self._check_at_least(0, "register_tokens", "layer_scale")
        if not self.class_token and self.pooling == "token":
            raise UserError("pooling='token' reads the class token, but class_token=False; use pooling='mean' or 'map'")
        if self.mlp_norm and not self.gated_mlp:
            raise UserError("mlp_norm=True needs gated_mlp=True; only gated MLPs have a LayerNorm")
        head_dim = self.embed_dim // self.num_heads
        if self.rotary != "none" and head_dim % 4:
            raise UserError(
                f"rotary={self.rotary!r} rotates heads with a multiple of 4 channels; embed_dim={self.embed_dim} with "
                f"num_heads={self.num_heads} gives {head_dim}"
            )
        if self.gated_mlp and self.mlp_dim % 2:
            raise UserError(
                f"mlp_ratio={self.mlp_ratio} gives MLPs of width {self.mlp_dim}, which gated_mlp=True cannot halve; "
                f"use mlp_ratio={(self.mlp_dim + 1) / self.embed_dim:g}"
            )
        if self.distillation_token != "none":
            defaults = {
                **{"class_token": True, "register_tokens": 0, "prefix_positions": True, "pre_norm": False},
                **{"learned_positions": True, "rotary": "none"},
            }
            for name, default in defaults.items():
                rule = f"cannot be combined with distillation_token={self.distillation_token!r}; use {default!r}"
                check_field(getattr(self, name) == default, name, getattr(self, name), rule)
        if self.pooling == "map" and self.distillation_token != "none":
            raise UserError(
                f"pooling='map' cannot be combined with distillation_token={self.distillation_token!r}; use 'token'"
            )
        if "mean" in self.pooling and self.distillation_token == "after_class":
            raise UserError(
                f"pooling={self.pooling!r} cannot be combined with distillation_token='after_class', whose heads read "
                "one token each; use pooling='token', or distillation_token='none' or 'last'"
            )
        if self.head_hidden_dim and self.distillation_token != "none":
            raise UserError(
                f"head_hidden_dim={self.head_hidden_dim} cannot be combined with distillation_token="
                f"{self.distillation_token!r}, whose heads are linear; use head_hidden_dim=0"
            )

    @property
    def grid_size(self) -> int:
        """Patches along a side."""
        return self.img_size // self.patch_size

    @property
    def first_pooled_token(self) -> int:
        """Index of the first token that is pooled."""
        return int(self.class_token) + self.register_tokens if self.pooling == "patch_mean" else 0

    @property
    def num_prefix_positions(self) -> int:
        """Tokens before the patches that have a position embedding."""
        if not self.prefix_positions or not self.learned_positions:
            return 0
        return int(self.class_token) + self.register_tokens + (self.distillation_token == "after_class")

    def _check_patches(self) -> None:
        self._check_multiple("img_size", "patch_size")


VIT_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
}

# (patch_size, img_size) of each ViT size; 384 is not a multiple of 14
_VIT_PATCHES = ((8, 224), (8, 384), (14, 224), (16, 224), (16, 384), (32, 224), (32, 384))

# (size, img_size) of DeiT, plain and distilled, with patches of 16
_DEIT_SIZES = (("tiny", 224), ("small", 224), ("base", 224), ("base", 384))

VIT_ARCHITECTURES: dict[str, ViTFields] = {
    **{
        f"vit_{size}_patch{patch}_{img}": ViTFields(img_size=img, patch_size=patch, **fields)
        for size, fields in VIT_SIZES.items()
        for patch, img in _VIT_PATCHES
    },
    **{f"deit_{size}_patch16_{img}": ViTFields(img_size=img, **VIT_SIZES[size]) for size, img in _DEIT_SIZES},
    **{
        f"deit_{size}_distilled_patch16_{img}": ViTFields(
            img_size=img, distillation_token="after_class", **VIT_SIZES[size]
        )
        for size, img in _DEIT_SIZES
    },
    # small images: handwritten digits (8 x 8, gray; or enlarged to 16 x 16) and CIFAR (32 x 32)
    "vit_nano_patch2_8": ViTFields(img_size=8, patch_size=2, in_chans=1, embed_dim=64, depth=4, num_heads=4),
    "vit_nano_patch4_16": ViTFields(img_size=16, patch_size=4, in_chans=1, embed_dim=64, depth=4, num_heads=4),
    "vit_mini_patch4_32": ViTFields(img_size=32, patch_size=4, embed_dim=192, depth=6, num_heads=3),
}

# Google's and ViT-pytorch's names, without an image size: 224 unless img_size is given
VIT_ALIASES = {
    "ViT-Ti_16": "vit_tiny_patch16_224",
    "ViT-S_16": "vit_small_patch16_224",
    "ViT-B_16": "vit_base_patch16_224",
    "ViT-B_32": "vit_base_patch32_224",
    "ViT-L_16": "vit_large_patch16_224",
    "ViT-L_32": "vit_large_patch32_224",
    "ViT-H_14": "vit_huge_patch14_224",
}


class VisionTransformer(TransformerModel):
    """The Vision Transformer of Dosovitskiy et al. (2021), with timm's parameter names."""

    fields: ViTFields
    cls_token: Any  # nn.Parameter, or None without a class token
    pos_embed: Any

    def __init__(self, model_name: str, fields: ViTFields) -> None:
        super().__init__(model_name, fields)
        dim, eps = fields.embed_dim, fields.layer_norm_eps
        num_positions = fields.num_prefix_positions + fields.grid_size**2

        self.cls_token = nn.Parameter(torch.empty(1, 1, dim)) if fields.class_token else None
        registers = fields.register_tokens
        self.reg_token = nn.Parameter(torch.empty(1, registers, dim)) if registers else None
        self.pos_embed = nn.Parameter(torch.empty(1, num_positions, dim)) if fields.learned_positions else None
        self.patch_embed = PatchEmbed(
            fields.img_size,
            fields.patch_size,
            fields.in_chans,
            dim,
            patch_order=fields.patch_order,
            bias=not fields.pre_norm,
        )
        self.join_tokens = JoinTokens()
        self.add_positions = AddPositions()
        self.pos_drop = nn.Dropout(fields.drop_rate)
        self.norm_pre = LayerNorm(dim, eps) if fields.pre_norm else nn.Identity()
        options = ("key_bias", "gelu", "gated_mlp", "mlp_norm", "attention_norm", "layer_scale")
        self.blocks = transformer_blocks(
            fields, is_rotary=fields.rotary != "none", **{name: getattr(fields, name) for name in options}
        )
        norm_in_head = fields.head_type == "norm_linear"
        self.norm = nn.Identity() if norm_in_head else LayerNorm(dim, eps)
        self.attn_pool: AttentionPool | None = None
        if fields.pooling == "map":
            self.attn_pool = AttentionPool(dim, fields.num_heads, fields.mlp_dim, layer_norm_eps=eps, gelu=fields.gelu)
            initialize_linear(*self.attn_pool.modules())
        self.fc_norm = LayerNorm(dim, eps) if norm_in_head else nn.Identity()
        hidden_dim = fields.head_hidden_dim if fields.num_classes else 0
        self.pre_logits: nn.Module = nn.Identity()
        if hidden_dim:  # LeCun initialization: truncated normal, variance 1 / dim
            linear = nn.Linear(dim, hidden_dim)
            nn.init.trunc_normal_(linear.weight, std=dim**-0.5)
            nn.init.zeros_(linear.bias)
            self.pre_logits = nn.Sequential(OrderedDict(fc=linear, act=nn.Tanh()))
        self.head = nn.Linear(hidden_dim or dim, fields.num_classes) if fields.num_classes else nn.Identity()
        # as timm does; the patch projection keeps torch's default
        for token in (self.cls_token, self.reg_token):
            if token is not None:
                nn.init.normal_(token, std=1e-6)
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        initialize_linear(*self.blocks.modules(), self.head)

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Converts the patch projection to the layout of ``patch_order``."""
        key = "patch_embed.proj.weight"
        return state | {key: arrange_patches(state[key], self.fields)} if key in state else state

    def forward_head(self, tokens: Tensor) -> Tensor:
        return self.head(self.pre_logits(self.fc_norm(self.pool(tokens))))

    def embed(self, images: Tensor) -> Tensor:
        tokens = self.patch_embed(images)
        if self.pos_embed is not None and not self.fields.prefix_positions:
            tokens = self.add_positions(tokens, positions=self.pos_embed)
        prefix: list[Tensor] = [token for token in (self.cls_token, self.reg_token) if token is not None]
        if prefix:
            tokens = self.join_tokens(tokens, before=torch.cat(prefix, dim=1))
        if self.pos_embed is not None and self.fields.prefix_positions:
            tokens = self.add_positions(tokens, positions=self.pos_embed)
        return self.norm_pre(self.pos_drop(tokens))

    def forward_features(self, images: Tensor) -> Tensor:
        if self.fields.rotary == "none":
            return super().forward_features(images)
        tokens, fields = self.embed(images), self.fields
        head_dim = fields.embed_dim // fields.num_heads
        # Not a buffer: it would be cast together with the model, and half precision cannot resolve the angles.
        rotary = ROTARY_SCHEMES[fields.rotary].tables(fields.grid_size, head_dim, tokens.device)
        for block in self.blocks:
            tokens = block(tokens, rotary)
        return self.norm(tokens)

    def no_weight_decay(self) -> set[str]:
        return {name for name in ("cls_token", "pos_embed") if getattr(self, name) is not None}

    def pool(self, tokens: Tensor) -> Tensor:
        """Reduces the tokens ``[B, N, C]`` to the head's input, ``[B, C]``."""
        if self.attn_pool is not None:
            return self.attn_pool(tokens)
        if self.fields.pooling == "token":
            return tokens[:, 0]
        return tokens[:, self.fields.first_pooled_token :].mean(dim=1)


def arrange_patches(weight: Tensor, fields: ViTFields) -> Tensor:
    """Converts a patch projection to the layout of ``fields.patch_order``; it computes the same function.

    Args:
        weight: convolution ``[C, in_chans, P, P]`` or linear ``[C, P * P * in_chans]``.
        fields: the model's fields.

    Returns:
        The converted weight; unchanged if its shape does not fit the model.
    """
    patch, chans = fields.patch_size, fields.in_chans
    if fields.patch_order == "channels_last" and weight.dim() == 4:
        return weight.permute(0, 2, 3, 1).flatten(1)
    if fields.patch_order == "channels_first" and weight.dim() == 2 and weight.shape[1] == patch * patch * chans:
        weight = weight.unflatten(1, (patch, patch, chans)).permute(0, 3, 1, 2)
    return weight
