"""Calls of the CUDA attention kernels by the programs of tests/simt, and checks of their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from support import plain, simt
from vitfast.ops.tolerance import BACKWARD_FACTOR, FORWARD_FACTOR, assert_as_accurate

T = TypeVar("T")


def of_types(table: Mapping[torch.dtype, Sequence[T]]) -> list[tuple[torch.dtype, T]]:
    """The parameters of a test that takes other sizes for each type."""
    return [(dtype, size) for dtype, sizes in table.items() for size in sizes]


@dataclass(frozen=True)
class AttentionCase:
    """One call.

    Attributes:
        qkv: ``[B, N, 3, H, D]``, float16 or bfloat16.
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
        if "logits" in results:
            assert_as_accurate(results["logits"], torch_logits, exact_logits, factor=FORWARD_FACTOR, name="logits")
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


@dataclass(frozen=True)
class AttentionBackwardCase:
    """One call.

    Attributes:
        qkv: ``[B, N, 3, H, D]``, float16 or bfloat16.
        grad_out: ``[B, N, H, D]``.
        bias: ``[B or 1, H, N, N]`` or None.
        grad_logits: ``[B, H, N, N]`` or None.
        scale: factor of the logits; None: ``D ** -0.5``.
        packed: give the kernel qkv itself, rather than three tensors ``[B, H, N, D]``.
    """

    qkv: Tensor
    grad_out: Tensor
    bias: Tensor | None = None
    grad_logits: Tensor | None = None
    scale: float | None = None
    packed: bool = True

    def run(
        self, *, variant: str = "plain", order: str = "forward", program: str | Path = "attention_backward"
    ) -> dict[str, Tensor]:
        """Returns ``grad_qkv`` [B, N, 3, H, D], ``grad_bias`` like bias, if there is one, and ``bank_conflicts``."""
        batch, tokens, _, heads, head_dim = self.qkv.shape
        dtype = self.qkv.dtype
        out, lse = self._forward()
        inputs = {"lse": lse}
        if self.packed:
            inputs |= {"qkv": self.qkv, "out": out, "grad_out": self.grad_out}
            outputs = {"grad_qkv": (self.qkv.shape, dtype)}
        else:
            inputs |= dict(zip("qkv", self.qkv.permute(2, 0, 3, 1, 4), strict=True))
            inputs |= {"out": out.transpose(1, 2), "grad_out": self.grad_out.transpose(1, 2)}
            outputs = {f"grad_{name}": ((batch, heads, tokens, head_dim), dtype) for name in "qkv"}
        if self.bias is not None:
            inputs["bias"] = self.bias
            outputs["grad_bias"] = ((batch, heads, tokens, tokens), dtype)
        if self.grad_logits is not None:
            inputs["grad_logits"] = self.grad_logits
        if variant != "cuda":
            outputs["bank_conflicts"] = ((1,), torch.int64)
        options = {
            "batch": batch,
            "heads": heads,
            "tokens": tokens,
            "head_dim": head_dim,
            "scale": self._scale(),
            "bias_batch_stride": 0 if self.bias is None or self.bias.shape[0] == 1 else heads * tokens * tokens,
        }
        results = simt.run(program, inputs, outputs, options, element=dtype, variant=variant, order=order)
        if self.bias is not None and self.bias.shape[0] != batch:  # the operator sums over the images
            results["grad_bias"] = results["grad_bias"].sum(0, keepdim=True)
        if not self.packed:
            results["grad_qkv"] = torch.stack([results.pop(f"grad_{name}") for name in "qkv"]).permute(1, 3, 0, 2, 4)
        return results

    def check(self, results: dict[str, Tensor]) -> None:
        """Holds results against float64, by the tolerance rule; q's, k's and v's gradients each on their own.

        Raises:
            AssertionError: an element is less accurate than it should be, or was not written.
        """
        exact, same = self._reference(torch.float64), self._reference(self.qkv.dtype)
        for part, name in enumerate("qkv"):
            triple = (tensors["grad_qkv"][:, :, part].contiguous() for tensors in (results, same, exact))
            assert_as_accurate(*triple, factor=BACKWARD_FACTOR, name=f"grad_{name}")
        if self.bias is not None:
            grads = (tensors["grad_bias"] for tensors in (results, same, exact))
            assert_as_accurate(*grads, factor=BACKWARD_FACTOR, name="grad_bias")

    def _scale(self) -> float:
        return self.qkv.shape[-1] ** -0.5 if self.scale is None else self.scale

    def _forward(self) -> tuple[Tensor, Tensor]:
        """What the forward would have kept: out in the inputs' type, lse in float32; zero in masked rows."""
        bias = None if self.bias is None else self.bias.double()
        out, logits = plain.attention_packed(self.qkv.double(), bias=bias, scale=self.scale, return_logits=True)
        lse = logits.logsumexp(-1)
        masked = lse == -torch.inf
        out = out.masked_fill(masked.transpose(1, 2)[..., None], 0.0)
        return out.to(self.qkv.dtype), lse.masked_fill(masked, 0.0).float()

    def _reference(self, dtype: torch.dtype) -> dict[str, Tensor]:
        leaves = {"qkv": self.qkv.to(dtype).requires_grad_()}
        if self.bias is not None:
            leaves["bias"] = self.bias.to(dtype).requires_grad_()
        out, logits = plain.attention_packed(
            leaves["qkv"], bias=leaves.get("bias"), scale=self.scale, return_logits=True
        )
        targets, grads = [out], [self.grad_out.to(dtype)]
        if self.grad_logits is not None:
            targets.append(logits)
            grads.append(self.grad_logits.to(dtype))
        found = torch.autograd.grad(targets, list(leaves.values()), grads)
        return {f"grad_{name}": grad for name, grad in zip(leaves, found, strict=True)}


def random_backward(
    batch: int, heads: int, tokens: int, head_dim: int, dtype: torch.dtype = torch.float16, **options: object
) -> AttentionBackwardCase:
    """Normally distributed q, k, v and gradient."""
    qkv = torch.randn(batch, tokens, 3, heads, head_dim).to(dtype)
    grad_out = torch.randn(batch, tokens, heads, head_dim).to(dtype)
    return AttentionBackwardCase(qkv, grad_out, **options)  # type: ignore[arg-type]


def far_below_zero(tokens: int, head_dim: int, dtype: torch.dtype = torch.float16) -> AttentionBackwardCase:
    """Logits of about -200 and a large gradient: a key behind the last, of zeros, would have an infinite weight."""
    qkv = torch.randn(2, tokens, 3, 1, head_dim) * 0.1
    qkv[:, :, 0] += 4.0
    qkv[:, :, 1] -= 50.0 * head_dim**-0.5
    return AttentionBackwardCase(qkv.to(dtype), torch.randn(2, tokens, 1, head_dim).to(dtype))


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
        dtype = self.qkv.dtype
        # both head dimensions are compiled for the results of float16 and for a GPU, otherwise the wider one
        both = variant == "cuda" or (variant == "plain" and dtype == torch.float16)
        defines = () if both else ("SIMT_HEAD_DIM=64",)
        return simt.run(program, inputs, outputs, options, element=dtype, defines=defines, variant=variant, order=order)

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
