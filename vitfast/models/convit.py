"""ConViT: a Vision Transformer that begins as a convolutional network and learns to be more."""

from __future__ import annotations

from torch import Tensor, nn

from vitfast.layers import GatedPositionalAttention
from vitfast.models.convit_fields import ConViTFields
from vitfast.models.vit import VisionTransformer, initialize_linear


class ConViT(VisionTransformer):
    """ConViT (d'Ascoli et al., 2021), with the original's and timm's parameter names.

    The patches, with their positions, pass ``local_up_to_layer`` blocks of gated positional attention; then the class
    token joins them for the remaining blocks of a ViT.

    Args:
        model_name: as in ``ImageModel``.
        fields: everything that defines it.
    """

    fields: ConViTFields

    def __init__(self, model_name: str, fields: ConViTFields) -> None:
        super().__init__(model_name, fields)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        for index, block in enumerate(list(self.blocks)[: fields.local_up_to_layer]):
            block.attn = self._local_attention(index)

    def forward_features(self, images: Tensor) -> Tensor:
        """Computes the tokens after the last block and ``norm``, ``[B, N, C]``, the class token first."""
        tokens = self.embed(images)
        for index, block in enumerate(self.blocks):
            if index == self.fields.local_up_to_layer:
                tokens = self.join_tokens(self.cls_token, tokens)
            tokens = block(tokens)
        return self.norm(tokens)

    def embed(self, images: Tensor) -> Tensor:
        """Computes the tokens ``[B, N, C]`` that enter the first block: the patches, with positions."""
        return self.pos_drop(self.add_positions(self.patch_embed(images), self.pos_embed))

    def _local_attention(self, index: int) -> GatedPositionalAttention:
        """Makes the attention of a block; its local initialization comes last, so that nothing overwrites it."""
        fields = self.fields
        attention = GatedPositionalAttention(
            fields.embed_dim,
            fields.num_heads,
            qkv_bias=fields.qkv_bias,
            drop_rate=fields.drop_rate,
            attention_drop_rate=fields.attention_drop_rate,
            locality_dim=fields.locality_dim,
        )
        for module in attention.modules():
            if isinstance(module, nn.Linear):
                initialize_linear(module)
        if fields.local_initialization:
            attention.initialize_locality(fields.locality_strength or 1 / (index + 1))
        return attention
