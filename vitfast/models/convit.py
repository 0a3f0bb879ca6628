"""ConViT: a Vision Transformer whose first layers are initialized as convolutions; fields, architectures and model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from vitfast.layers import GatedPositionalAttention
from vitfast.models.model_fields import check_field
from vitfast.models.transformer import initialize_linear
from vitfast.models.vit import VisionTransformer, ViTFields


@dataclass(frozen=True)
class ConViTFields(ViTFields):
    """The fields of a ConViT: those of a ViT, and the locality of its first blocks. The defaults are ConViT-B's.

    vissl's variant differs in three fields: ``locality_dim=10``, ``layer_norm_eps=1e-5`` and, where checkpoints are
    adapted to another image size, ``position_interpolation="bicubic_aligned"``. It stores the gates as ``[1, H, 1, 1]``
    under ``alpha``; the original and vitfast use ``[H]`` under ``gating_param``. vissl overwrites its local
    initialization immediately, which corresponds to ``local_initialization=False``.

    Attributes:
        num_heads: attention heads of a block; local initialization requires a square number.
        qkv_bias: whether q, k and v have biases. Not in the original and vissl.
        key_bias, distillation_token, class_token, register_tokens, learned_positions, rotary, prefix_positions,
            pre_norm, attention_norm: ConViT has no other form.
        pooling: the head's input: the class ``"token"``, or the ``"mean"`` of all tokens including the class token
            (vissl's ``gap``).
        local_up_to_layer: number of first blocks with gated positional attention and without the class token; fewer
            than ``depth``. vissl's ``N_GPSA_LAYERS``.
        local_initialization: whether these start as convolutions, see ``GatedPositionalAttention``.
        locality_strength: how sharply the heads then attend to their offsets. 0: 1 / (index + 1), for the index of the
            block (as vissl for 0 and below).
        locality_dim: how often each positional feature is repeated: 1 in the original, 10 in vissl. The repetitions
            represent the same functions, but each receives a smaller gradient.

    Raises:
        UserError: as ``ViTFields``.
    """

    num_heads: int = 16
    qkv_bias: bool = False
    key_bias: Literal[True] = True
    distillation_token: Literal["none"] = "none"
    class_token: Literal[True] = True
    register_tokens: Literal[0] = 0
    learned_positions: Literal[True] = True
    rotary: Literal["none"] = "none"
    prefix_positions: Literal[True] = True
    pre_norm: Literal[False] = False
    attention_norm: Literal[False] = False
    local_up_to_layer: int = 10
    local_initialization: bool = True
    locality_strength: float = 1.0
    locality_dim: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_field(
            0 <= self.local_up_to_layer < self.depth,
            "local_up_to_layer",
            self.local_up_to_layer,
            f"must be at least 0 and below depth={self.depth}, so that the class token attends to the patches",
        )
        check_field(self.locality_strength >= 0.0, "locality_strength", self.locality_strength, "must be at least 0")
        self._check_at_least(1, "locality_dim")

    @property
    def num_prefix_positions(self) -> int:
        """Tokens before the patches that have a position embedding: none, the class token is inserted later."""
        return 0


# number of heads, a square: each starts at one offset of a 2 x 2, 3 x 3 or 4 x 4 kernel
_NUM_HEADS = {"tiny": 4, "small": 9, "base": 16}

# channels of a head; vissl's models have 64
_HEAD_DIMS = {"": 48, "_plus": 64}

CONVIT_ARCHITECTURES: dict[str, ConViTFields] = {
    f"convit_{size}{suffix}": ConViTFields(embed_dim=num_heads * head_dim, num_heads=num_heads)
    for size, num_heads in _NUM_HEADS.items()
    for suffix, head_dim in _HEAD_DIMS.items()
}

# the paper's names
CONVIT_ALIASES = {
    f"ConViT-{short}{sign}": f"convit_{size}{suffix}"
    for short, size in (("Ti", "tiny"), ("S", "small"), ("B", "base"))
    for sign, suffix in (("", ""), ("+", "_plus"))
}


class ConViT(VisionTransformer):
    """ConViT (d'Ascoli et al., 2021), with the original's and timm's parameter names.

    The patches, with their positions, pass through ``local_up_to_layer`` blocks of gated positional attention; then the
    class token is prepended for the remaining blocks, which are a ViT's.
    """

    fields: ConViTFields

    def __init__(self, model_name: str, fields: ConViTFields) -> None:
        super().__init__(model_name, fields)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        for index, block in enumerate(list(self.blocks)[: fields.local_up_to_layer]):
            block.attn = attention = GatedPositionalAttention(
                fields.embed_dim,
                fields.num_heads,
                qkv_bias=fields.qkv_bias,
                drop_rate=fields.drop_rate,
                attention_drop_rate=fields.attention_drop_rate,
                locality_dim=fields.locality_dim,
            )
            initialize_linear(*attention.modules())
            if fields.local_initialization:
                attention.initialize_locality(fields.locality_strength or 1 / (index + 1))

    def forward_features(self, images: Tensor) -> Tensor:
        tokens = self.embed(images)
        for index, block in enumerate(self.blocks):
            if index == self.fields.local_up_to_layer:
                tokens = self.join_tokens(tokens, before=self.cls_token)
            tokens = block(tokens)
        return self.norm(tokens)

    def embed(self, images: Tensor) -> Tensor:
        return self.pos_drop(self.add_positions(self.patch_embed(images), positions=self.pos_embed))
