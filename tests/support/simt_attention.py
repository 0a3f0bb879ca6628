"""The CUDA kernel of attention, run by tests/simt/programs/attention.cpp, and what its results are held against."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from support import plain, simt
from support.tolerance import FORWARD_FACTOR, assert_as_accurate


@dataclass(frozen=True)
class AttentionCase:
    """One call.

    Attributes:
        qkv: ``[B, N, 3, H, D]``, float16, bfloat16 or float32.
        bias: ``[B or 1, H, N, N]`` or None.
        scale: factor of the logits; None: ``D ** -0.5``.
        packed: give the kernel qkv itself, rather than three tensors ``[B, H, N, D]``.
    """

    qkv: Tensor
    bias: Tensor | None = None
    scale: float | None = None
    packed: bool = True

    def run(
        self, *, variant: str = "plain", order: str = "forward", program: str | Path = "attention"
    ) -> dict[str, Tensor]:
        """Returns ``out`` [B, N, H, D], ``lse`` [B, H, N], ``logits`` [B, H, N, N] and ``bank_conflicts`` [1]."""
        batch, tokens, _, heads, head_dim = self.qkv.shape
        dtype = self.qkv.dtype
        inputs = {"qkv": self.qkv} if self.packed else dict(zip("qkv", self.qkv.permute(2, 0, 3, 1, 4), strict=True))
        if self.bias is not None:
            inputs["bias"] = self.bias
        out_shape = (batch, tokens, heads, head_dim) if self.packed else (batch, heads, tokens, head_dim)
        outputs = {
            "out": (out_shape, dtype),
            "lse": ((batch, heads, tokens), torch.float32),
            "logits": ((batch, heads, tokens, tokens), dtype),
            "bank_conflicts": ((1,), torch.int64),
        }
        if variant == "cuda":
            del outputs["bank_conflicts"]
        options = {
            "batch": batch,
            "heads": heads,
            "tokens": tokens,
            "head_dim": head_dim,
            "scale": head_dim**-0.5 if self.scale is None else self.scale,
            "bias_batch_stride": 0 if self.bias is None or self.bias.shape[0] == 1 else heads * tokens * tokens,
            "return_logits": 1,
        }
        results = simt.run(program, inputs, outputs, options, element=dtype, variant=variant, order=order)
        if not self.packed:
            results["out"] = results["out"].transpose(1, 2)
        return results

    def check(self, results: dict[str, Tensor]) -> None:
        """Holds results against float64, by the tolerance rule.

        Raises:
            AssertionError: an element is less accurate than it should be, or was not written.
        """
        exact_out, exact_logits, exact_lse = self._reference(torch.float64)
        torch_out, torch_logits, _ = self._reference(self.qkv.dtype)
        assert_as_accurate(results["out"], torch_out, exact_out, factor=FORWARD_FACTOR, name="out")
        assert_as_accurate(results["logits"], torch_logits, exact_logits, factor=FORWARD_FACTOR, name="logits")
        # kept in float32, whatever the type of the inputs
        torch.testing.assert_close(results["lse"].double(), exact_lse, rtol=1e-5, atol=1e-5)

    def _reference(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        bias = None if self.bias is None else self.bias.to(dtype)
        out, logits = plain.attention_packed(self.qkv.to(dtype), bias=bias, scale=self.scale, return_logits=True)
        lse = logits.logsumexp(-1)
        masked = lse == -torch.inf  # a row that attends to nothing is zero, and so is its lse
        return out.masked_fill(masked.transpose(1, 2)[..., None], 0.0), logits, lse.masked_fill(masked, 0.0)


def random_case(
    batch: int, heads: int, tokens: int, head_dim: int, dtype: torch.dtype = torch.float16, **options: object
) -> AttentionCase:
    """Normally distributed q, k and v."""
    return AttentionCase(torch.randn(batch, tokens, 3, heads, head_dim).to(dtype), **options)  # type: ignore[arg-type]


def negative_case(tokens: int, head_dim: int, dtype: torch.dtype = torch.float16) -> AttentionCase:
    """All logits are about -8, so that a column that should be hidden and counts as zero takes the whole weight."""
    qkv = torch.randn(2, tokens, 3, 1, head_dim) * 0.1
    qkv[:, :, 0] += 1.0
    qkv[:, :, 1] -= 8.0 * head_dim**-0.5
    return AttentionCase(qkv.to(dtype))


def dominant_case(tokens: int, head_dim: int, dtype: torch.dtype = torch.float16) -> AttentionCase:
    """The last key gets nearly all the weight: a wrong last column cannot hide."""
    qkv = torch.randn(2, tokens, 3, 1, head_dim)
    qkv[:, -1, 1] = qkv[:, :, 0].mean(1).sign() * 4.0
    return AttentionCase(qkv.to(dtype))


def positive_case(tokens: int, head_dim: int, dtype: torch.dtype = torch.float32) -> AttentionCase:
    """All values are about 4: sums over keys that are cut off rather than rounded shrink."""
    qkv = torch.randn(2, tokens, 3, 1, head_dim)
    qkv[:, :, 2] = qkv[:, :, 2] * 0.1 + 4.0
    return AttentionCase(qkv.to(dtype))
