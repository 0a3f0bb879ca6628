"""Parts that the transformer models share: base class, blocks and initialization."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vitfast.layers import Block
from vitfast.models.image_model import ImageModel
from vitfast.models.model_fields import TransformerFields


class TransformerModel(ImageModel):
    """Base class of the models with one sequence of blocks: ``embed``, ``blocks``, ``norm`` and ``forward_head``."""

    pos_embed: nn.Parameter | None
    blocks: nn.Sequential
    norm: nn.Module

    @property
    def num_features(self) -> int:
        """Channels of the features that enter the head."""
        return int(self.fields.embed_dim)

    def no_weight_decay(self) -> set[str]:
        """``cls_token`` and ``pos_embed``."""
        return {"cls_token", "pos_embed"}

    def position_keys(self) -> dict[str, int]:
        """``pos_embed``, if there is one."""
        if self.pos_embed is None:
            return {}
        return {"pos_embed": self.pos_embed.shape[1] - self.fields.grid_size**2}

    def forward(self, images: Tensor) -> Tensor:
        """Classifies images.

        Args:
            images: ``[B, in_chans, img_size, img_size]``.

        Returns:
            Logits ``[B, num_classes]``, or the pooled channels ``[B, C]`` of a model without a head.

        Raises:
            TypeError: the images are not floating point.
            ValueError: the images have another shape.
        """
        return self.forward_head(self.forward_features(images))

    def embed(self, images: Tensor) -> Tensor:
        """Computes the tokens ``[B, N, C]`` that enter the first block: class token and patches, with positions."""
        raise NotImplementedError

    def forward_features(self, images: Tensor) -> Tensor:
        """Computes the tokens after the last block and ``norm``, ``[B, N, C]``, the class token first."""
        return self.norm(self.blocks(self.embed(images)))

    def forward_head(self, tokens: Tensor) -> Tensor:
        """Computes the logits ``[B, num_classes]`` from ``forward_features``'s tokens ``[B, N, C]``."""
        raise NotImplementedError


def transformer_blocks(fields: TransformerFields, **options: Any) -> nn.Sequential:
    """Builds ``fields.depth`` blocks; ``options`` are those of ``Block`` that only some families have."""
    return nn.Sequential(
        *(
            Block(fields.embed_dim, fields.num_heads, fields.mlp_dim, **options, **fields.block_options(index))
            for index in range(fields.depth)
        )
    )


def initialize_linear(*modules: nn.Module) -> None:
    """Initializes linear layers as timm's ViT does: truncated normal with standard deviation 0.02, zero bias."""
    for module in modules:
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
