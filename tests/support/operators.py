"""The table of operators: one entry here adds an operator to every generic test."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from support import plain, samples
from support.sample import Make, Sample
from support.shapes import in_layout
from vitfast import ops
from vitfast.ops.library import has_kernel

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class Operator:
    """Properties of an operator for the generic tests.

    Attributes:
        name: the public function's name in ``vitfast.ops``.
        kernel: its key in ``vitfast.build_info()["kernels"]``.
        public: the public function.
        plain: the equivalent in plain PyTorch, with the same signature.
        samples: calls that matter, the same for every dtype: at least eight with at most 40,000 elements, one of them
            with more than 2,000; at least four whose name begins with "tiny", which gradcheck and torch.compile run.
        draw: a random call for the fuzz test.
        misshape: calls made invalid: (the argument that the error must name, the call).
        batched: arguments whose first dimension is the batch.
        computes_in_autocast: under autocast it computes in autocast's type; otherwise inputs keep their type.
        exact: the result is bit-exact with ``plain``, rather than within the tolerance rule.
        straight_through: the gradient is not that of the forward function: no gradcheck.
        promoted: arguments that may have another float type than the rest.
        uses_torch_gemm: the kernel calls torch's GEMM, which may split the work by batch size and threads.
    """

    name: str
    kernel: str
    public: Callable[..., Any]
    plain: Callable[..., Any]
    samples: Callable[[Make], list[Sample]]
    draw: Callable[[random.Random, Make], Sample]
    misshape: Callable[[Sample], list[tuple[str, Sample]]]
    batched: tuple[str, ...]
    computes_in_autocast: bool = False
    exact: bool = False
    straight_through: bool = False
    promoted: tuple[str, ...] = ()
    uses_torch_gemm: bool = False

    @property
    def is_compiled(self) -> bool:
        """True where vitfast's kernel runs on the CPU, rather than torch's operators."""
        return has_kernel(self.kernel, "cpu")

    def in_layout(self, tensor: Tensor, layout: str) -> Tensor:
        """The tensor in another memory layout, NaN between its elements where the kernel must not read.

        torch's bfloat16 GEMM with AMX (oneDNN, torch 2.13 to 2.15) reads one element past a row of odd length, and
        multiplies it by zero.
        """
        return in_layout(tensor, layout, around=0.0 if self.uses_torch_gemm else torch.nan)

    def __str__(self) -> str:
        return self.name


OPERATORS = (
    Operator(
        name="attention",
        kernel="attention",
        public=ops.attention,
        plain=plain.attention,
        samples=samples.attention_samples(packed=False),
        draw=samples.draw_attention(packed=False),
        misshape=samples.misshape_attention,
        batched=("q", "k", "v"),
        computes_in_autocast=True,
    ),
    Operator(
        name="attention_packed",
        kernel="attention",
        public=ops.attention_packed,
        plain=plain.attention_packed,
        samples=samples.attention_samples(packed=True),
        draw=samples.draw_attention(packed=True),
        misshape=samples.misshape_packed,
        batched=("qkv",),
        computes_in_autocast=True,
    ),
    Operator(
        name="gated_positional_attention",
        kernel="gated_positional_attention",
        public=ops.gated_positional_attention,
        plain=plain.gated_positional_attention,
        samples=samples.gated_samples,
        draw=samples.draw_gated,
        misshape=samples.misshape_gated,
        batched=("qkv",),
        computes_in_autocast=True,
        promoted=("gate",),
        uses_torch_gemm=True,  # if gradients are required
    ),
    Operator(
        name="layer_norm",
        kernel="layer_norm",
        public=ops.layer_norm,
        plain=plain.layer_norm,
        samples=samples.layer_norm_samples(residual=False),
        draw=samples.draw_layer_norm(residual=False),
        misshape=samples.misshape_layer_norm,
        batched=("x",),
    ),
    Operator(
        name="add_layer_norm",
        kernel="layer_norm",
        public=ops.add_layer_norm,
        plain=plain.add_layer_norm,
        samples=samples.layer_norm_samples(residual=True),
        draw=samples.draw_layer_norm(residual=True),
        misshape=samples.misshape_layer_norm,
        batched=("x", "residual"),
        promoted=("x", "residual"),
    ),
    Operator(
        name="linear",
        kernel="linear",
        public=ops.linear,
        plain=plain.linear,
        samples=samples.linear_samples,
        draw=samples.draw_linear,
        misshape=samples.misshape_linear,
        batched=("x", "residual"),
        computes_in_autocast=True,
        uses_torch_gemm=True,
    ),
    Operator(
        name="mlp",
        kernel="mlp",
        public=ops.mlp,
        plain=plain.mlp,
        samples=samples.mlp_samples,
        draw=samples.draw_mlp,
        misshape=samples.misshape_mlp,
        batched=("x", "residual"),
        computes_in_autocast=True,
        uses_torch_gemm=True,
    ),
    Operator(
        name="quantize_float",
        kernel="quantize_float",
        public=ops.quantize_float,
        plain=plain.quantize_float,
        samples=samples.quantize_samples,
        draw=samples.draw_quantize,
        misshape=samples.misshape_quantize,
        batched=("x",),
        exact=True,
        straight_through=True,
    ),
    Operator(
        name="quantize_fixed",
        kernel="quantize_fixed",
        public=ops.quantize_fixed,
        plain=plain.quantize_fixed,
        samples=samples.fixed_samples,
        draw=samples.draw_fixed,
        misshape=samples.misshape_fixed,
        batched=("x",),
        exact=True,
        straight_through=True,
    ),
    Operator(
        name="matmul_accumulate",
        kernel="matmul_accumulate",
        public=ops.matmul_accumulate,
        plain=plain.matmul_accumulate,
        samples=samples.accumulate_samples,
        draw=samples.draw_accumulate,
        misshape=samples.misshape_accumulate,
        batched=("x",),
        exact=True,
        straight_through=True,
        uses_torch_gemm=True,  # for the gradients
    ),
    Operator(
        name="upsample_relations",
        kernel="upsample_relations",
        public=ops.upsample_relations,
        plain=plain.upsample_relations,
        samples=samples.upsample_samples,
        draw=samples.draw_upsample,
        misshape=samples.misshape_upsample,
        batched=("x",),
        promoted=("x", "matrix"),
        uses_torch_gemm=True,  # for the gradient of the matrix
    ),
)
