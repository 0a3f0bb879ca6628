"""DeiT: the Vision Transformer with a distillation token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitfast.layers import LayerNorm
from vitfast.models.transformer import initialize_linear
from vitfast.models.vit import VisionTransformer, ViTFields


class DistilledVisionTransformer(VisionTransformer):
    """DeiT with a distillation token (Touvron et al., 2021, section 4), in both published forms.

    ======================  =========================  =============================================================
    distillation_token      place and position         evaluation
    ======================  =========================  =============================================================
    ``after_class`` (DeiT)  index 1, with a position   mean of both heads
    ``last`` (myrtle)       after the patches, none    the class head alone; the token is not part of the sequence
    ======================  =========================  =============================================================

    In training both return the pair (class logits, distillation logits).
    """

    head_prefixes = ("head.", "head_dist.")

    def __init__(self, model_name: str, fields: ViTFields) -> None:
        super().__init__(model_name, fields)
        dim = fields.embed_dim
        self.dist_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, dim), std=0.02))
        norm_in_head = fields.head_type == "norm_linear"
        self.fc_norm_dist = LayerNorm(dim, fields.layer_norm_eps) if norm_in_head else nn.Identity()
        self.head_dist = nn.Linear(dim, fields.num_classes) if fields.num_classes else nn.Identity()
        initialize_linear(self.head_dist)

    def no_weight_decay(self) -> set[str]:
        return super().no_weight_decay() | {"dist_token"}

    def embed(self, images: Tensor) -> Tensor:
        is_last = self.fields.distillation_token == "last"
        prefix = self.cls_token if is_last else torch.cat([self.cls_token, self.dist_token], dim=1)
        tokens = self.join_tokens(self.patch_embed(images), before=prefix)
        tokens = self.add_positions(tokens, positions=self.pos_embed)
        if is_last and self.training:
            tokens = self.join_tokens(tokens, after=self.dist_token)
        return self.pos_drop(tokens)

    def forward_head(self, tokens: Tensor) -> Tensor | tuple[Tensor, Tensor]:  # type: ignore[override]
        """Computes both heads' logits ``[B, num_classes]`` in training, one tensor of them in evaluation."""
        if self.fields.distillation_token == "after_class":
            distillation = tokens[:, 1]
        elif self.training:
            tokens, distillation = tokens[:, :-1], tokens[:, -1]
        else:
            return super().forward_head(tokens)
        class_logits = super().forward_head(tokens)
        distillation_logits = self.head_dist(self.fc_norm_dist(distillation))
        if self.training:
            return class_logits, distillation_logits
        return (class_logits + distillation_logits) / 2
