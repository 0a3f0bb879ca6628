"""Self-attention that takes and gives its logits."""

from __future__ import annotations

from torch import Tensor

from vitfast.layers.attention import Attention
from vitfast.ops.autocast import keep_float32


class RelationAttention(Attention):
    """``Attention`` to whose logits, before the softmax, something is added, and which can return them.

    In the Dynamic Vision Transformer (Wang et al., 2021) the logits are the relations between tokens that one
    exit hands on to the next. Gradients flow through both.
    """

    def forward(  # type: ignore[override]
        self, x: Tensor, relations: Tensor | None = None, *, return_relations: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Attends over the tokens of ``x``.

        Args:
            x: ``[B, N, C]``.
            relations: ``[B, H, N, N]``, added to the logits; or None.
            return_relations: also return the logits, ``relations`` among them.

        Returns:
            ``[B, N, C]``, and the logits ``[B, H, N, N]`` or None.
        """
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # [B, N, 3, H, D]
        dropout_p = self.attention_drop_rate if self.training else 0.0
        logits = None
        with keep_float32(qkv):
            if return_relations:
                out, logits = self.attend(qkv, bias=relations, return_logits=True, dropout_p=dropout_p)
            else:
                out = self.attend(qkv, bias=relations, dropout_p=dropout_p)
        return self.proj_drop(self.proj(out.flatten(-2))), logits
