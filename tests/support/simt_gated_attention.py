"""The CUDA kernel of ConViT's attention, run by tests/simt/programs, and what its results are held against."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from support import plain, simt
from support.tolerance import FORWARD_FACTOR, assert_as_accurate


@dataclass(frozen=True)
class GatedAttentionCase:
    """One call.

    Attributes:
        qkv: ``[B, N, 3, H, D]``, float16 or bfloat16.
        position: ``[H, N, N]`` in its type.
        gate: ``[H]``, float32.
        scale: factor of the logits; None: ``D ** -0.5``.
    """

    qkv: Tensor
    position: Tensor
    gate: Tensor
    scale: float | None = None

    def run(
        self, *, variant: str = "plain", order: str = "forward", program: str | Path = "gated_positional_attention"
    ) -> dict[str, Tensor]:
        """Returns ``out`` [B, N, H, D] and ``bank_conflicts`` [1]."""
        batch, tokens, _, heads, head_dim = self.qkv.shape
        outputs = {"out": ((batch, tokens, heads, head_dim), self.qkv.dtype), "bank_conflicts": ((1,), torch.int64)}
        if variant == "cuda":
            del outputs["bank_conflicts"]
        # rows of an odd number of tokens are a NaN apart, and there is none behind the last
        row_stride = tokens + tokens % 2
        padded = F.pad(self.position, (0, row_stride - tokens), value=torch.nan)
        position = padded.flatten()[: padded.numel() - (row_stride - tokens)]
        options = {
            "batch": batch,
            "heads": heads,
            "tokens": tokens,
            "head_dim": head_dim,
            "scale": head_dim**-0.5 if self.scale is None else self.scale,
            "position_row_stride": row_stride,
        }
        inputs = {"qkv": self.qkv, "position": position, "gate": self.gate}
        return simt.run(program, inputs, outputs, options, element=self.qkv.dtype, variant=variant, order=order)

    def check(self, results: dict[str, Tensor]) -> None:
        """Holds the result against float64, by the tolerance rule.

        Raises:
            AssertionError: an element is less accurate than it should be, or was not written.
        """
        exact, same = (
            plain.gated_positional_attention(
                self.qkv.to(dtype), self.position.to(dtype), self.gate.to(dtype), scale=self.scale
            )
            for dtype in (torch.float64, self.qkv.dtype)
        )
        assert_as_accurate(results["out"], same, exact, factor=FORWARD_FACTOR, name="out")


def random_gated(
    batch: int,
    heads: int,
    tokens: int,
    head_dim: int,
    dtype: torch.dtype = torch.float16,
    *,
    gate: Tensor | None = None,
    scale: float | None = None,
) -> GatedAttentionCase:
    """Normally distributed q, k and v; every head has its own gate and probabilities, which change from row to row."""
    qkv = torch.randn(batch, tokens, 3, heads, head_dim).to(dtype)
    position = (3 * torch.randn(heads, tokens, tokens)).softmax(-1).to(dtype)
    return GatedAttentionCase(qkv, position, torch.rand(heads) if gate is None else gate, scale)


def last_key_gated(tokens: int, head_dim: int, dtype: torch.dtype = torch.float16) -> GatedAttentionCase:
    """By position every query looks at the last key, and all logits are far below zero: no wrong edge can hide."""
    qkv = torch.randn(2, tokens, 3, 2, head_dim) * 0.1
    qkv[:, :, 0] += 1.0
    qkv[:, :, 1] -= 8.0 * head_dim**-0.5
    qkv[:, -1, 2] += 4.0
    position = torch.zeros(2, tokens, tokens)
    position[:, :, -1] = 1.0
    return GatedAttentionCase(qkv.to(dtype), position.to(dtype), torch.tensor([0.25, 0.75]))
