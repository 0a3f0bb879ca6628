"""What defines a ConViT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitfast.models.field_checks import check_field
from vitfast.models.vit_fields import ViTFields


@dataclass(frozen=True)
class ConViTFields(ViTFields):
    """The fields of a ConViT: those of a ViT, and how local its first blocks are. The defaults are ConViT-B's.

    vissl's variant differs in three fields: ``locality_dim=10``, ``layer_norm_eps=1e-5`` and, where checkpoints are
    adapted to another image size, ``position_interpolation="bicubic_aligned"``. Its gates are stored as
    ``[1, H, 1, 1]`` under ``alpha``, here and in the original as ``[H]`` under ``gating_param``. It means to initialize
    its layers locally, but overwrites that at once: ``local_initialization=False`` is what it really begins with.

    Attributes:
        num_heads: attention heads of a block; local initialization wants a square number.
        qkv_bias: whether q, k and v have biases. Not in the original and vissl.
        distillation_token: ``"none"``; ConViT has no other form.
        pooling: what the head reads: the class ``"token"``, or the ``"mean"`` of all tokens, the class token among them
            (vissl's ``gap``).
        local_up_to_layer: how many blocks, from the first, have gated positional attention, and no class token; fewer
            than ``depth``. vissl's ``N_GPSA_LAYERS``.
        local_initialization: whether these begin as convolutions, see ``GatedPositionalAttention``.
        locality_strength: how sharply the heads look at their offsets then. 0: 1 / (index + 1), for the index of the
            block (what vissl does for 0 and below).
        locality_dim: how often each positional feature is repeated: 1 in the original, 10 in vissl. The repetitions
            learn together: they compute the same functions, but receive a smaller gradient each.

    Raises:
        UserError: as ``ViTFields``.
    """

    num_heads: int = 16
    qkv_bias: bool = False
    distillation_token: Literal["none"] = "none"
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
            f"must be at least 0 and below depth={self.depth}, so that the class token meets the patches",
        )
        check_field(self.locality_strength >= 0.0, "locality_strength", self.locality_strength, "must be at least 0")
        check_field(self.locality_dim >= 1, "locality_dim", self.locality_dim, "must be at least 1")

    @property
    def num_prefix_positions(self) -> int:
        """Tokens before the patches that have a position embedding: none, the class token comes later."""
        return 0
