"""The fields that families of plain transformers share."""

from __future__ import annotations

from dataclasses import dataclass

from vitfast.layers.position_embedding import PositionInterpolation
from vitfast.models.field_checks import check_field
from vitfast.models.image_model import ModelFields


@dataclass(frozen=True)
class TransformerFields(ModelFields):
    """What defines a stack of transformer blocks.

    Attributes:
        img_size, in_chans, num_classes: as in ``ModelFields``.
        embed_dim: channels of a token, a multiple of ``num_heads``.
        depth: number of transformer blocks.
        num_heads: attention heads of a block.
        mlp_ratio: hidden width of an MLP as a multiple of ``embed_dim``.
        layer_norm_eps: epsilon of every LayerNorm.
        qkv_bias: whether q, k and v have biases.
        position_interpolation: how checkpoints are adapted to another image size, see ``resize_position_embedding``.
        drop_rate: dropout of the embedded tokens, the attention projections and the MLPs.
        attention_drop_rate: dropout of the attention probabilities.
        drop_path: stochastic depth rate of the last block; it grows linearly from 0 at the first.

    Raises:
        UserError: a field has a wrong type or value.
    """

    embed_dim: int = 384
    depth: int = 12
    num_heads: int = 6
    mlp_ratio: float = 4.0
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    position_interpolation: PositionInterpolation = "bicubic"
    drop_rate: float = 0.0
    attention_drop_rate: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("embed_dim", "depth", "num_heads"):
            check_field(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        self._check_heads()
        check_field(
            self.layer_norm_eps > 0.0, "layer_norm_eps", self.layer_norm_eps, "must be above 0, for example 1e-6"
        )
        check_field(
            self.mlp_dim >= 1, "mlp_ratio", self.mlp_ratio, f"must be at least {1 / self.embed_dim:g} (1 / embed_dim)"
        )
        for name in ("drop_rate", "attention_drop_rate", "drop_path"):
            self._check_rate(name)

    @property
    def mlp_dim(self) -> int:
        """Hidden width of an MLP."""
        return int(self.embed_dim * self.mlp_ratio)

    def drop_path_of(self, block: int) -> float:
        """The stochastic depth rate of a block."""
        return self.drop_path * block / max(self.depth - 1, 1)

    def _check_heads(self) -> None:
        rule = f"must be a multiple of num_heads={self.num_heads}"
        check_field(self.embed_dim % self.num_heads == 0, "embed_dim", self.embed_dim, rule)

    def _check_rate(self, name: str) -> None:
        rate = getattr(self, name)
        check_field(0.0 <= rate < 1.0, name, rate, "must be at least 0 and below 1, a probability")
