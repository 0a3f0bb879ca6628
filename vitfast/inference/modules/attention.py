"""Attention of accelerated models, between the q, k, v projection and the output projection."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfast import ops
from vitfast.inference.ir import Precision
from vitfast.inference.modules.position_bias import BiasTables
from vitfast.layers.positional_attention import attend_by_position
from vitfast.layers.rotary import RotaryTables
from vitfast.layers.token_performer import performer_attention
from vitfast.ops.attention import torch_attention
from vitfast.ops.library import has_kernel


class Heads(nn.Module):
    """Base of all attention modules: number and size of the heads, and the factor on the logits."""

    def __init__(self, heads: int, head_dim: int, scale: float) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = head_dim
        self.scale = scale

    def split_heads(self, qkv: Tensor) -> Tensor:
        """Reshapes ``[B, N, 3 * H * D]`` to ``[B, N, 3, H, D]``."""
        return qkv.unflatten(-1, (3, self.heads, self.head_dim))


class InferenceAttention(Heads):
    """Self-attention: ``qkv`` ``[B, N, 3 * H * D]`` -> ``[B, N, H * D]``; ``precision``: of the block's GEMMs."""

    operators = ("attention",)

    def __init__(self, heads: int, head_dim: int, scale: float, precision: Precision) -> None:
        super().__init__(heads, head_dim, scale)
        self.precision: Precision = precision

    def forward(self, qkv: Tensor, rotary: RotaryTables | None = None, key_bias: Tensor | None = None) -> Tensor:
        """Attends, after a rotation of q and k by ``rotary``, with ``key_bias`` ``[B, N]`` added to the logits."""
        qkv_BN3HD = self.split_heads(qkv)
        if rotary is None:
            bias = spread_key_bias(key_bias, self.heads, qkv.dtype)
            return ops.attention_packed(qkv_BN3HD, bias=bias, scale=self.scale).flatten(-2)
        q_BNHD, k_BNHD, v_BNHD = qkv_BN3HD.unbind(2)
        return self.attend(q_BNHD, k_BNHD, v_BNHD, rotary)

    def attend(self, q_BNHD: Tensor, k_BNHD: Tensor, v_BNHD: Tensor, rotary: RotaryTables | None) -> Tensor:
        """Attends from separate q, k and v."""
        if rotary is not None:
            q_BNHD, k_BNHD = rotary.rotate(q_BNHD), rotary.rotate(k_BNHD)
        out_BHND = ops.attention(*(x.transpose(1, 2) for x in (q_BNHD, k_BNHD, v_BNHD)), scale=self.scale)
        return out_BHND.transpose(1, 2).flatten(-2)


class QkNormAttention(InferenceAttention):
    """Self-attention with a norm (or identity) of q and k within each head, or ``jointly`` over all heads."""

    def __init__(
        self,
        heads: int,
        head_dim: int,
        scale: float,
        precision: Precision,
        q_norm: nn.Module,
        k_norm: nn.Module,
        jointly: bool,
    ) -> None:
        super().__init__(heads, head_dim, scale, precision)
        self.q_norm = q_norm
        self.k_norm = k_norm
        self.jointly = jointly

    def forward(  # type: ignore[override]
        self, qkv: Tensor, rotary: RotaryTables | None = None
    ) -> Tensor:
        q_BNHD, k_BNHD, v_BNHD = self.split_heads(qkv).unbind(2)
        if self.jointly:
            q_BNHD = self.q_norm(q_BNHD.flatten(-2)).view(q_BNHD.shape)
            k_BNHD = self.k_norm(k_BNHD.flatten(-2)).view(k_BNHD.shape)
            return self.attend(q_BNHD, k_BNHD, v_BNHD, rotary)
        return self.attend(self.q_norm(q_BNHD), self.k_norm(k_BNHD), v_BNHD, rotary)


class BiasedAttention(InferenceAttention):
    """Self-attention with a bias on the logits, within windows or of all tokens; optionally of cosines.

    Args:
        heads: number of heads H.
        head_dim: head dimension D.
        scale: factor on the logits.
        precision: of the block's GEMMs.
        padding: q, k and v of padding ``[3 * H * D]``, the bias of their projection; None: zeros.
        cosine: factors ``[H]`` on the cosines of q and k; None: their dot products.
    """

    padding: Tensor | None
    cosine: Tensor | None

    def __init__(
        self,
        heads: int,
        head_dim: int,
        scale: float,
        precision: Precision,
        padding: Tensor | None = None,
        cosine: Tensor | None = None,
    ) -> None:
        super().__init__(heads, head_dim, scale, precision)
        self.register_buffer("padding", padding)
        self.register_buffer("cosine", cosine)

    def forward(self, qkv: Tensor, positions: BiasTables) -> Tensor:  # type: ignore[override]
        """Attends, with the bias and the windows of ``positions``."""
        bias, windows, patterns, lengths = positions[:4]
        if windows is None:
            return self._attend(qkv, bias, positions)
        batch, tokens, width = qkv.shape
        padding = qkv.new_zeros(width) if self.padding is None else self.padding.to(qkv.dtype)
        padded = torch.cat([qkv, padding.expand(batch, 1, -1)], dim=1)  # index -1 is the padding
        in_windows = padded[:, windows.flatten()].unflatten(1, windows.shape).flatten(0, 1)
        if bias is not None:
            bias = (bias if patterns is None else bias[patterns]).expand(len(windows), -1, -1, -1)
        if lengths is not None:
            is_padding = torch.arange(windows.shape[1], device=qkv.device) >= lengths[:, None]
            mask = torch.zeros(is_padding.shape, device=qkv.device).masked_fill(is_padding, -torch.inf)
            mask = mask[:, None, None].expand(-1, self.heads, windows.shape[1], -1)
            bias = mask if bias is None else bias + mask
        if bias is not None:
            bias = bias.repeat(batch, 1, 1, 1)
        attended = self._attend(in_windows, bias, positions).view(batch, windows.numel(), -1)
        out = attended.new_empty((batch, tokens + 1, attended.shape[-1]))
        out[:, windows.flatten()] = attended
        return out[:, :tokens]

    def _attend(self, qkv: Tensor, bias: Tensor | None, positions: BiasTables) -> Tensor:
        qkv_BN3HD = self.split_heads(qkv)
        if positions.row_terms is not None:
            of_queries = positions.query_bias(qkv_BN3HD[:, :, 0])
            bias = of_queries if bias is None else bias + of_queries
        if self.cosine is not None:
            q_BNHD, k_BNHD, v_BNHD = qkv_BN3HD.unbind(2)
            q_BNHD = unit_vectors(q_BNHD) * self.cosine[:, None].to(qkv.dtype)
            qkv_BN3HD = torch.stack([q_BNHD, unit_vectors(k_BNHD), v_BNHD], dim=2)
        bias = None if bias is None else bias.to(qkv.dtype)
        return ops.attention_packed(qkv_BN3HD, bias=bias, scale=self.scale).flatten(-2)


class GatedAttention(nn.Module):
    """ConViT's attention: blends attention by content with precomputed attention by position; ``gate``: ``[H]``."""

    gate: Tensor  # [H, 1] in ``dtype``, that of the tokens
    positional: Tensor  # positional probabilities along each axis, [2, H, G, G]

    def __init__(self, content: InferenceAttention, gate: Tensor, positional: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.content = content
        self.register_buffer("gate", gate[:, None].to(dtype))
        self.register_buffer("positional", positional)

    def forward(self, qkv: Tensor) -> Tensor:
        content = self.content(qkv)
        positional_BYXHD = attend_by_position(self.positional, self.content.split_heads(qkv)[:, :, 2])
        out_BYXHD = torch.lerp(content.view_as(positional_BYXHD), positional_BYXHD, self.gate)
        return out_BYXHD.flatten(1, 2).flatten(-2)


def unit_vectors(x: Tensor) -> Tensor:
    """Divides the rows of ``x`` ``[..., D]`` by their norms, in float32; a row of zeros gives zeros.

    In float16 the smallest norm that ``F.normalize`` divides by (1e-12) is zero: a row of zeros would give NaN.
    """
    return F.normalize(x.to(torch.float32), dim=-1).to(x.dtype)


def spread_key_bias(key_bias: Tensor | None, heads: int, dtype: torch.dtype) -> Tensor | None:
    """Expands a bias of the keys ``[B, N]``, or None, to all heads and queries: ``[B, H, N, N]``, as a view."""
    if key_bias is None:
        return None
    batch, tokens = key_bias.shape
    return key_bias.to(dtype)[:, None, None].expand(batch, heads, tokens, tokens)


def attend_few(q_BTHD: Tensor, k_BNHD: Tensor, v_BNHD: Tensor, scale: float, key_bias: Tensor | None = None) -> Tensor:
    """Attention of few queries to all tokens, of which there are more; returns ``[B, T, H, D]``.

    ``key_bias`` ``[B, N]`` is added to the logits of each key.

    In float32 on the CPU, torch's operator sums in an order that depends on the batch and the threads. There the sums
    are separate operators: twice the time of this attention, under 0.5 % of a ViT's.
    """
    if q_BTHD.dtype != torch.float32 or q_BTHD.device.type != "cpu":
        q_BHTD, k_BHND, v_BHND = (x.transpose(1, 2) for x in (q_BTHD, k_BNHD, v_BNHD))
        mask = None if key_bias is None else key_bias[:, None, None].to(q_BTHD.dtype)
        return torch_attention(q_BHTD, k_BHND, v_BHND, mask, scale=scale).transpose(1, 2)
    results = []
    for q_B1HD in q_BTHD.split(1, dim=1):
        logits_BHN = (q_B1HD * k_BNHD).sum(-1).transpose(1, 2) * scale
        if key_bias is not None:
            logits_BHN = logits_BHN + key_bias[:, None]
        probabilities_BHN = logits_BHN.contiguous().softmax(-1)  # of another dimension it depends on the batch
        results.append((probabilities_BHN.transpose(1, 2)[..., None] * v_BNHD).sum(1))
    return torch.stack(results, dim=1)


class FirstTokensAttention(Heads):
    """Attention from the first tokens to all: q ``[B, T, H * D]``, kv ``[B, N, 2 * H * D]`` -> ``[B, T, H * D]``."""

    def __init__(self, heads: int, head_dim: int, scale: float, *, q_norm: nn.Module, k_norm: nn.Module) -> None:
        super().__init__(heads, head_dim, scale)
        self.q_norm = q_norm
        self.k_norm = k_norm

    def forward(
        self, q: Tensor, kv: Tensor, rotary: RotaryTables | None = None, key_bias: Tensor | None = None
    ) -> Tensor:
        """Attends, after a rotation by ``rotary``, which rotates all tokens' q or, of fewer tokens, none.

        ``key_bias`` as in ``InferenceAttention``.
        """
        q_BTHD = self.q_norm(q.unflatten(-1, (self.heads, self.head_dim)))
        k_BNHD, v_BNHD = kv.unflatten(-1, (2, self.heads, self.head_dim)).unbind(2)
        k_BNHD = self.k_norm(k_BNHD)
        if rotary is not None:
            q_BTHD = rotary.rotate(q_BTHD) if q_BTHD.shape[1] == k_BNHD.shape[1] else q_BTHD
            k_BNHD = rotary.rotate(k_BNHD)
        if q_BTHD.shape[1] == k_BNHD.shape[1]:
            qkv_BN3HD = torch.stack([q_BTHD, k_BNHD, v_BNHD], dim=2)
            bias = spread_key_bias(key_bias, self.heads, q.dtype)
            return ops.attention_packed(qkv_BN3HD, bias=bias, scale=self.scale).flatten(-2)
        return attend_few(q_BTHD, k_BNHD, v_BNHD, self.scale, key_bias).flatten(-2)


class RelationAttention(Heads):
    """Self-attention with a bias on the logits, which can also be returned (DVT)."""

    operators = ("attention",)

    def forward(
        self, qkv: Tensor, relations: Tensor | None, upsample: Tensor | None, return_logits: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Computes attention.

        Args:
            qkv: ``[B, N, 3 * H * D]``.
            relations: the bias ``[B, H, N, N]``, or ``[B, H, n, n]`` on a coarser grid, or None.
            upsample: matrix ``[N, n]`` from the coarser grid to this one; ignored for a bias ``[B, H, N, N]``.
            return_logits: whether to return the logits ``[B, H, N, N]``.
        """
        if relations is not None and relations.shape[-1] == qkv.shape[1]:
            upsample = None
        out, logits = self.attend(self.split_heads(qkv), relations, upsample, return_logits)
        return out.flatten(-2), logits

    def attend(
        self, qkv: Tensor, relations: Tensor | None, upsample: Tensor | None, return_logits: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Computes ``[B, N, H, D]`` and the logits from ``qkv`` ``[B, N, 3, H, D]``."""
        if relations is not None:
            relations = (relations if upsample is None else upsample_relations(relations, upsample)).to(qkv.dtype)
        if not return_logits:
            return ops.attention_packed(qkv, bias=relations, scale=self.scale), None
        return ops.attention_packed(qkv, bias=relations, scale=self.scale, return_logits=True)


class SingleHeadAttention(nn.Module):
    """Softmax attention with one head: qkv ``[B, N, 3 * D]`` -> ``[B, N, D]``."""

    operators = ("attention",)

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, qkv: Tensor, v: Tensor) -> Tensor:
        return ops.attention_packed(qkv.unflatten(-1, (3, 1, -1)), scale=self.scale).squeeze(2)


class PerformerAttention(nn.Module):
    """A performer's attention: kqv ``[B, N, 3 * D]`` -> ``[B, N, D]``; ``projection`` ``[M, D]``: random features."""

    epsilon = 1e-8  # added to the denominator

    projection: Tensor

    def __init__(self, projection: Tensor) -> None:
        super().__init__()
        self.register_buffer("projection", projection)

    def forward(self, kqv: Tensor, v: Tensor) -> Tensor:
        """``v``: a contiguous copy of v."""
        k, q, _ = kqv.chunk(3, dim=-1)
        return performer_attention(q, k, v, self.projection, epsilon=self.epsilon)


def upsample_relations(relations: Tensor, upsample: Tensor) -> Tensor:
    """Upsamples ``relations`` ``[B, H, n, n]`` by ``upsample`` ``[N, n]`` to ``[B, H, N, N]``."""
    if has_kernel("upsample_relations", relations.device.type):
        return ops.upsample_relations(relations, upsample)
    columns = upsample.t().to(relations.dtype)
    # rows through the transpose, in the operator's order
    return (relations.transpose(2, 3) @ columns).transpose(2, 3) @ columns
