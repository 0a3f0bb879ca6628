"""Upsampling of attention logits (DVT's attention relations) to a finer token grid.

Shapes: B batch, H heads, n tokens of the coarse grid, N tokens of the fine grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vitfast.ops import reference
from vitfast.ops.arguments import check_like, check_shape, check_tensor, needs_gradient
from vitfast.ops.library import fills_gpu, has_kernel, has_shared_memory
from vitfast.ops.registration import call, register

# the CUDA kernel keeps one head of x, and this many bytes for each of its rows, in shared memory
CUDA_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CUDA_SHARED_BYTES_OF_ROW = 144


def upsample_relations(x: Tensor, matrix: Tensor) -> Tensor:
    """Computes ``matrix x matrixᵀ`` for every head, for a matrix with few nonzero elements per row.

    The Dynamic Vision Transformer upsamples the attention logits of one exit to the grid of the next exit this way
    (Wang et al., 2021), with four nonzero elements per row. Zeros of the matrix are skipped: a NaN does not spread.
    Inputs keep their dtype under autocast.

    Args:
        x: ``[B, H, n, n]``, float32, bfloat16, float16 or float64.
        matrix: ``[N, n]``, of any of these types.

    Returns:
        ``[B, H, N, N]`` in x's type, computed in float32, or in float64 for such an x.

    Raises:
        TypeError: an argument is no dense floating-point tensor.
        ValueError: shapes or devices do not match.
    """
    check_tensor("x", x, ndim=4, shape="[B, H, n, n]")
    check_shape("x", x, (*x.shape[:3], x.shape[2]), "[B, H, n, n]")
    check_tensor("matrix", matrix, ndim=2, shape="[N, n]")
    matrix_shape = (matrix.shape[0], x.shape[3])
    check_like("matrix", matrix, "x", x, matrix_shape, "[N, n] with x's last dimension", same_dtype=False)
    # x's gradient is computed from the fine grid
    with_gradients = needs_gradient(x)
    if not _has_kernel(x, max(matrix.shape) if with_gradients else matrix.shape[1], with_gradients):
        with torch.autocast(x.device.type, enabled=False):
            return reference.upsample_relations(x, matrix)
    out: Tensor = call("upsample_relations", x, matrix)
    return out


def _has_kernel(x: Tensor, tokens: int, with_gradients: bool) -> bool:
    if not has_kernel("upsample_relations", x.device.type, with_gradients):
        return False
    if x.device.type != "cuda":
        return True
    if x.dtype not in CUDA_DTYPES or not fills_gpu(x.shape[0] * x.shape[1], x.device):
        return False  # with fewer heads, torch's GEMMs are faster
    # x transposed with an odd row stride, and 16 bytes of alignment
    needed = x.element_size() * tokens * (tokens | 1) + CUDA_SHARED_BYTES_OF_ROW * tokens + 16
    return has_shared_memory(x.device, needed)


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    x, matrix = inputs
    ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, matrix)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    x, matrix = ctx.saved_tensors
    grad_x = call("upsample_relations", grad, matrix.t()) if ctx.needs_input_grad[0] else None
    grad_matrix = None
    if ctx.needs_input_grad[1]:
        precise = torch.promote_types(grad.dtype, torch.float32)
        grad, x, wide = grad.to(precise), x.to(precise), matrix.to(precise)
        sided = grad @ (wide @ x.transpose(2, 3)) + grad.transpose(2, 3) @ (wide @ x)
        grad_matrix = sided.sum((0, 1)).to(matrix.dtype)
    return grad_x, grad_matrix


def _fake(x: Tensor, matrix: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:2], matrix.shape[0], matrix.shape[0]))


def _flops(x: Sequence[int], matrix: Sequence[int]) -> int:
    """Counts two GEMMs with the dense matrix."""
    heads, (fine, coarse) = x[0] * x[1], matrix
    return 2 * heads * fine * coarse * (coarse + fine)


register("upsample_relations", _fake, backward=_backward, setup_context=_setup_context, flops=_flops)
