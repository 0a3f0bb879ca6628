"""A linear layer with a fused epilogue: activation, scale, residual and rounding.

Shapes: K inputs, N outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vitfast.formats import FloatFormat
from vitfast.ops import reference
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
from vitfast.ops.quantize_float import quantize_float
from vitfast.ops.registration import call, empty_like, gemm_flops, register
from vitfast.ops.rounding import float_rounding

ACTIVATIONS = ("none", *GELU_APPROXIMATE)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    format: FloatFormat | None = None,
) -> Tensor:
    """Computes ``residual + scale * activation(x weightᵀ + bias)``.

    On CUDA the epilogue is fused into bfloat16 and float16 GEMMs whose K and N are multiples of 8. Under autocast the
    GEMM runs in autocast's dtype and the residual keeps its dtype.

    Args:
        x: ``[..., K]``, float32, bfloat16, float16 or float64.
        weight: ``[N, K]``.
        bias: ``[N]`` or None.
        activation: ``"none"``, ``"gelu"`` (erf) or ``"gelu_tanh"`` (Hendrycks and Gimpel, 2016).
        scale: ``[N]`` or None: a LayerScale (Touvron et al., 2021).
        residual: ``[..., N]`` or None.
        format: a ``vitfast.FloatFormat`` to which the result is rounded (to nearest, ties to even), as by
            ``quantize_float``; gradients pass straight through. None: no rounding.

    Returns:
        ``[..., N]``.

    Raises:
        TypeError: an argument is no dense floating-point tensor, or the dtypes differ.
        ValueError: shapes or devices do not match, or ``activation`` is unknown.
    """
    _check(x, weight, bias, activation, scale, residual)
    rounding = None if format is None else float_rounding(format)
    dtype = autocast_dtype(x)
    if dtype is not None:
        x, weight, bias, scale = cast(x, dtype), cast(weight, dtype), cast(bias, dtype), cast(scale, dtype)
    fused_residual, later_residual = split_residual(residual, x.dtype)

    save_for_backward = needs_gradient(x, weight, bias, scale)
    if has_kernel("linear", x.device.type, save_for_backward):
        fused_rounding = rounding if later_residual is None else None
        out: Tensor = call(
            "linear_forward", x, weight, bias, activation, scale, fused_residual, fused_rounding, save_for_backward
        )[0]
    else:
        with torch.autocast(x.device.type, enabled=False):
            out = reference.linear(x, weight, bias, activation, scale, fused_residual)
        if format is not None and later_residual is None:
            out = quantize_float(out, format)
    if later_residual is None:
        return out
    out = later_residual + out
    return out if format is None else quantize_float(out, format)


def fp16_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Computes ``x weightᵀ + bias`` of operands rounded to float16, with float32 sums and results; without gradients.

    On CUDA the tensor cores compute it. Operands that float16 represents are not changed, so the result is that of
    float32 up to the order of the sums.

    Args:
        x: ``[..., K]``, any floating-point dtype.
        weight: ``[N, K]``.
        bias: ``[N]``, float32, or None.

    Returns:
        ``[..., N]``, float32.
    """
    x, weight = x.to(torch.float16), weight.to(torch.float16)
    if x.is_cuda:
        out: Tensor = torch.mm(x.flatten(0, -2), weight.t(), out_dtype=torch.float32).unflatten(0, x.shape[:-1])
    else:  # torch has no CPU GEMM of fp16 operands with an fp32 result
        out = F.linear(x.to(torch.float32), weight.to(torch.float32))
    return out if bias is None else out + bias


def _check(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, scale: Tensor | None, residual: Tensor | None
) -> None:
    check_rows("x", x, "[..., K]")
    check_tensor("weight", weight, ndim=2, shape="[N, K]")
    outputs = weight.shape[0]
    parameters = {
        "weight": (weight, (outputs, x.shape[-1]), "[N, K] with x's last dimension"),
        "bias": (bias, (outputs,), "weight's N"),
        "scale": (scale, (outputs,), "weight's N"),
        "residual": (residual, (*x.shape[:-1], outputs), "x's leading dimensions and weight's N"),
    }
    check_parameters(x, parameters)
    check_choice("activation", activation, ACTIVATIONS)


def _fake_forward(
    x: Tensor, weight: Tensor, activation: str, scale: Tensor | None, save_for_backward: bool
) -> tuple[Tensor, Tensor | None]:
    shape = (*x.shape[:-1], weight.shape[0])
    saves_sum = save_for_backward and (activation != "none" or scale is not None)
    return x.new_empty(shape), x.new_empty(shape) if saves_sum else None


def _fake_backward(
    x: Tensor, weight: Tensor, scale: Tensor | None, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    grad_bias = weight.new_empty(weight.shape[:1]) if has_bias else None
    return empty_like(x), empty_like(weight), grad_bias, empty_like(scale)


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, bias, ctx.activation, scale, residual, _, ctx.saved = inputs
    ctx.has_bias, ctx.has_residual = bias is not None, residual is not None
    pre_activation = output[1]
    ctx.save_for_backward(x, weight, pre_activation, scale)
    if pre_activation is not None:
        ctx.mark_non_differentiable(pre_activation)
    ctx.set_materialize_grads(False)  # no zeros for pre_activation


def _backward(ctx: Any, grad_out: Tensor | None, *_: Any) -> tuple[Any, ...]:
    x, weight, pre_activation, scale = ctx.saved_tensors
    grad_residual = grad_out if ctx.has_residual else None
    if not ctx.saved or grad_out is None:  # only the residual requires a gradient, or there is none
        return None, None, None, None, None, grad_residual, None, None
    grad_x, grad_weight, grad_bias, grad_scale = call(
        "linear_backward", grad_out, x, weight, pre_activation, scale, ctx.activation, ctx.has_bias
    )
    return grad_x, grad_weight, grad_bias, None, grad_scale, grad_residual, None, None


register(
    "linear_forward",
    _fake_forward,
    backward=_backward,
    setup_context=_setup_context,
    flops=lambda x, weight: gemm_flops(x, weight[0]),
)
register(
    "linear_backward",
    _fake_backward,
    gradient_of="linear",
    flops=lambda x, weight: 2 * gemm_flops(x, weight[0]),
)
