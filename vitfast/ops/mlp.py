"""The MLP of a transformer block in one operator.

Shapes: C channels, F hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vitfast.ops.arguments import (
    GELU_APPROXIMATE,
    check_choice,
    check_parameters,
    check_rows,
    check_tensor,
    needs_gradient,
    split_residual,
)
from vitfast.ops.autocast import autocast_dtype, cast
from vitfast.ops.library import has_kernel
from vitfast.ops.linear import linear
from vitfast.ops.registration import call, empty_like, gemm_flops, register

_ACTIVATIONS = {approximate: activation for activation, approximate in GELU_APPROXIMATE.items()}

# limits of the CUDA kernels
CUDA_DTYPES = (torch.float16, torch.bfloat16)
CUDA_MULTIPLE = 8  # elements in 16 bytes


def mlp(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    *,
    residual: Tensor | None = None,
    approximate: str = "none",
) -> Tensor:
    """Computes ``fc2(gelu(fc1(x))) + residual``.

    Under autocast the GEMMs run in autocast's dtype and the residual keeps its dtype.

    Args:
        x: ``[..., C]``, float32, bfloat16, float16 or float64.
        fc1_weight: ``[F, C]``.
        fc1_bias: ``[F]`` or None.
        fc2_weight: ``[C_out, F]``.
        fc2_bias: ``[C_out]`` or None.
        residual: ``[..., C_out]`` or None.
        approximate: ``"none"`` for the exact GELU (erf), ``"tanh"`` for its approximation (Hendrycks and Gimpel, 2016).

    Returns:
        ``[..., C_out]``.

    Raises:
        TypeError: an argument is no dense floating-point tensor, or the dtypes differ.
        ValueError: shapes or devices do not match, or ``approximate`` is unknown.
    """
    _check(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, residual, approximate)
    dtype = autocast_dtype(x)
    if dtype is not None:
        x, fc1_weight, fc1_bias = cast(x, dtype), cast(fc1_weight, dtype), cast(fc1_bias, dtype)
        fc2_weight, fc2_bias = cast(fc2_weight, dtype), cast(fc2_bias, dtype)
    fused_residual, later_residual = split_residual(residual, x.dtype)

    weights = (fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    save_for_backward = needs_gradient(x, *weights)
    if _has_kernel(x, fc1_weight, fc2_weight, save_for_backward):
        out: Tensor = call("mlp_forward", x, *weights, fused_residual, approximate, save_for_backward)[0]
    else:
        with torch.autocast(x.device.type, enabled=False):
            hidden = linear(x, fc1_weight, fc1_bias, activation=_ACTIVATIONS[approximate])
            out = linear(hidden, fc2_weight, fc2_bias, residual=fused_residual)
    return out if later_residual is None else out + later_residual


def _has_kernel(x: Tensor, fc1_weight: Tensor, fc2_weight: Tensor, with_gradients: bool) -> bool:
    if not has_kernel("mlp", x.device.type, with_gradients):
        return False
    if x.device.type != "cuda":
        return True
    widths = (*fc1_weight.shape, *fc2_weight.shape)
    fits = all(width > 0 and width % CUDA_MULTIPLE == 0 for width in widths)
    return fits and x.dtype in CUDA_DTYPES and x.numel() > 0


def _check(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    residual: Tensor | None,
    approximate: str,
) -> None:
    check_rows("x", x, "[..., C]")
    check_tensor("fc1_weight", fc1_weight, ndim=2, shape="[F, C]")
    check_tensor("fc2_weight", fc2_weight, ndim=2, shape="[C_out, F]")
    hidden, outputs = fc1_weight.shape[0], fc2_weight.shape[0]
    parameters = {
        "fc1_weight": (fc1_weight, (hidden, x.shape[-1]), "[F, C] with x's last dimension"),
        "fc1_bias": (fc1_bias, (hidden,), "fc1_weight's F"),
        "fc2_weight": (fc2_weight, (outputs, hidden), "[C_out, F] with fc1_weight's F"),
        "fc2_bias": (fc2_bias, (outputs,), "fc2_weight's C_out"),
        "residual": (residual, (*x.shape[:-1], outputs), "x's leading dimensions and fc2_weight's C_out"),
    }
    check_parameters(x, parameters)
    check_choice("approximate", approximate, tuple(_ACTIVATIONS))


def _fake_forward(
    x: Tensor, fc1_weight: Tensor, fc2_weight: Tensor, save_for_backward: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    def empty(width: int) -> Tensor:
        return x.new_empty((*x.shape[:-1], width))

    hidden, outputs = fc1_weight.shape[0], fc2_weight.shape[0]
    keeps_activation = save_for_backward and x.device.type == "cuda"
    return empty(outputs), empty(hidden) if save_for_backward else None, empty(hidden) if keeps_activation else None


def _fake_backward(
    x: Tensor, fc1_weight: Tensor, fc2_weight: Tensor, has_fc1_bias: bool, has_fc2_bias: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor | None]:
    grad_fc1_bias = fc1_weight.new_empty(fc1_weight.shape[:1]) if has_fc1_bias else None
    grad_fc2_bias = fc2_weight.new_empty(fc2_weight.shape[:1]) if has_fc2_bias else None
    return empty_like(x), empty_like(fc1_weight), grad_fc1_bias, empty_like(fc2_weight), grad_fc2_bias


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, residual, ctx.approximate, _ = inputs
    ctx.has_biases = (fc1_bias is not None, fc2_bias is not None)
    ctx.has_residual = residual is not None
    _, pre_activation, activation = output
    ctx.save_for_backward(x, pre_activation, activation, fc1_weight, fc2_weight)
    ctx.mark_non_differentiable(*(tensor for tensor in (pre_activation, activation) if tensor is not None))
    ctx.set_materialize_grads(False)  # no zeros for pre_activation and activation


def _backward(ctx: Any, grad_out: Tensor | None, *_: Any) -> tuple[Any, ...]:
    x, pre_activation, activation, fc1_weight, fc2_weight = ctx.saved_tensors
    grad_residual = grad_out if ctx.has_residual else None
    if pre_activation is None or grad_out is None:  # only the residual requires a gradient, or there is none
        return None, None, None, None, None, grad_residual, None, None
    grads = call(
        "mlp_backward",
        grad_out,
        x,
        pre_activation,
        activation,
        fc1_weight,
        fc2_weight,
        ctx.approximate,
        *ctx.has_biases,
    )
    return *grads, grad_residual, None, None


def mlp_flops(x: Sequence[int], hidden: int, n: int) -> int:
    """FLOPs of the forward; the backward takes two GEMMs for each of the forward's."""
    return gemm_flops(x, hidden) + gemm_flops((*x[:-1], hidden), n)


register(
    "mlp_forward",
    _fake_forward,
    backward=_backward,
    setup_context=_setup_context,
    flops=lambda x, fc1_weight, fc2_weight: mlp_flops(x, fc1_weight[0], fc2_weight[0]),
)
register(
    "mlp_backward",
    _fake_backward,
    gradient_of="mlp",
    flops=lambda x, fc1_weight, fc2_weight: 2 * mlp_flops(x, fc1_weight[0], fc2_weight[0]),
)
