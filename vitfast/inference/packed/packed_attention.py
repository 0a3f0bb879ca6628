"""The attention of an accelerated block, between its two projections."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfast import ops
from vitfast.inference.ir import AttentionSpec
from vitfast.inference.packed.packer import Packer
from vitfast.layers.positional_attention import attend_by_position, positional_map, positional_probabilities
from vitfast.ops.gated_positional_attention import has_gated_kernel
from vitfast.ops.library import has_kernel


class PackedAttention(nn.Module):
    """Attends with the q, k and v that one product gives; in float32, or as the packed kernel of the precision does.

    ConViT's probabilities by position depend on no image: they are computed here, once. Where the operator
    ``gated_positional_attention`` has a kernel, it takes all of them; else what each axis has of them is enough.

    Args:
        described: the attention.
        packer: packs.
        num_patches: of an image, for ConViT's.
    """

    gate: Tensor | None
    positional: Tensor  # [H, N, N] with a gate [H]; or [2, H, G, G] with [H, 1]

    def __init__(self, described: AttentionSpec, packer: Packer, num_patches: int = 0) -> None:
        super().__init__()
        self.heads = described.heads
        self.head_dim = described.head_dim
        self.scale = described.scale
        self.precision = described.qkv.precision or packer.precision
        self.is_packed = packer.has("packed_attention")
        self.is_related = packer.has("packed_related_attention")
        self.q_norm = packer.optional_norm(described.q_norm)
        self.k_norm = packer.optional_norm(described.k_norm)
        self.has_qk_norm = described.q_norm is not None or described.k_norm is not None
        gate = positional = None
        self.is_blended = False
        if described.gated is not None:
            gated, device, dtype = described.gated, packer.device, packer.stream_dtype
            gate = torch.sigmoid(gated.gating_param.detach()).to(device)
            axes_2HGG = positional_probabilities(gated.weight.detach(), gated.bias.detach(), math.isqrt(num_patches))
            self.is_blended = not self.is_packed and has_gated_kernel(device, dtype, num_patches, self.head_dim)
            if self.is_blended:
                # a row of an odd number of tokens is one longer, as the CUDA kernel reads two at a time
                map_HNN = positional_map(axes_2HGG).to(device, dtype)
                positional = F.pad(map_HNN, (0, num_patches % 2))[..., :num_patches]
            else:
                gate, positional = gate[:, None].to(dtype), axes_2HGG.to(device)
        self.register_buffer("gate", gate)
        self.register_buffer("positional", positional)

    def forward(self, qkv: Tensor) -> Tensor:
        """Attends over ``qkv`` ``[B, N, 3 * H * D]``; returns ``[B, N, H * D]``."""
        qkv_BN3HD = qkv.unflatten(-1, (3, self.heads, self.head_dim))
        if self.is_blended and self.gate is not None:
            blended = ops.gated_positional_attention(qkv_BN3HD, self.positional, self.gate, scale=self.scale)
            return blended.flatten(-2)
        if self.has_qk_norm:
            out_BNHD = self._normalized(*qkv_BN3HD.unbind(2))
        elif self.is_packed:
            out_BNHD = torch.ops.vitfast.packed_attention.default(qkv_BN3HD, self.scale, self.precision)
        else:
            out_BNHD = ops.attention_packed(qkv_BN3HD, scale=self.scale)
        if self.gate is not None:
            positional_BYXHD = attend_by_position(self.positional, qkv_BN3HD[:, :, 2])
            out_BYXHD = out_BNHD.unflatten(1, positional_BYXHD.shape[1:3])
            out_BNHD = torch.lerp(out_BYXHD, positional_BYXHD, self.gate).flatten(1, 2)
        return out_BNHD.flatten(-2)

    def related(
        self, qkv: Tensor, relations: Tensor | None, upsample: Tensor | None, return_logits: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Attends with a bias on the logits, and returns these, too, if they are asked for.

        Args:
            qkv: ``[B, N, 3 * H * D]``.
            relations: the bias ``[B, H, N, N]``; or, on a coarser grid, ``[B, H, n, n]``; or None.
            upsample: the matrix ``[N, n]`` that brings it to the finer one.
            return_logits: also return ``[B, H, N, N]``.
        """
        qkv_BN3HD = qkv.unflatten(-1, (3, self.heads, self.head_dim))
        if relations is not None and relations.shape[-1] == qkv.shape[1]:
            upsample = None
        if self.is_related:
            out, logits = torch.ops.vitfast.packed_related_attention.default(
                qkv_BN3HD, relations, upsample, self.scale, return_logits
            )
            return out.flatten(-2), logits
        if relations is not None:
            relations = (relations if upsample is None else upsampled(relations, upsample)).to(qkv.dtype)
        if not return_logits:
            return ops.attention_packed(qkv_BN3HD, bias=relations, scale=self.scale).flatten(-2), None
        out, logits = ops.attention_packed(qkv_BN3HD, bias=relations, scale=self.scale, return_logits=True)
        return out.flatten(-2), logits

    def of_first(self, q: Tensor, kv: Tensor) -> Tensor:
        """Attends from some tokens only: ``q`` ``[B, T, H * D]``, ``kv`` ``[B, N, 2 * H * D]``; ``[B, T, H * D]``."""
        q_BTHD = q.unflatten(-1, (self.heads, self.head_dim))
        k_BNHD, v_BNHD = kv.unflatten(-1, (2, self.heads, self.head_dim)).unbind(2)
        q_BHTD, k_BHND = self.q_norm(q_BTHD).transpose(1, 2), self.k_norm(k_BNHD).transpose(1, 2)
        out_BHTD = F.scaled_dot_product_attention(q_BHTD, k_BHND, v_BNHD.transpose(1, 2), scale=self.scale)
        return out_BHTD.transpose(1, 2).flatten(-2)

    def _normalized(self, q_BNHD: Tensor, k_BNHD: Tensor, v_BNHD: Tensor) -> Tensor:
        q_BHND, k_BHND = self.q_norm(q_BNHD).transpose(1, 2), self.k_norm(k_BNHD).transpose(1, 2)
        return ops.attention(q_BHND, k_BHND, v_BNHD.transpose(1, 2), scale=self.scale).transpose(1, 2)


def upsampled(relations: Tensor, upsample: Tensor) -> Tensor:
    """Brings ``relations`` ``[B, H, n, n]`` to a finer grid by ``upsample`` ``[N, n]``."""
    if has_kernel("upsample_relations", relations.device.type):
        return ops.upsample_relations(relations, upsample)
    columns = upsample.t().to(relations.dtype)
    # rows by way of the transpose, as in the operator
    return (relations.transpose(2, 3) @ columns).transpose(2, 3) @ columns
