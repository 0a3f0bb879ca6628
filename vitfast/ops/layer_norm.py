"""LayerNorm, alone and fused with the residual addition before it.

Shapes: C channels; the normalization runs over the last dimension.

For a single small image torch's own operator is a few microseconds faster, which is what the checks cost. It is not
called all the same: an image gives the same bits alone and in a batch.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from vitfast.ops.autocast import cast
from vitfast.ops.autograd import forbid_double_backward
from vitfast.ops.checks import check_eps, check_like, check_shape, check_tensor
from vitfast.ops.library import has_kernel


class FusedRounding(Protocol):
    """A deterministic rounding to a float format, as a function and as raw operators take it."""

    @property
    def raw(self) -> list[int]:
        """What ``float_rounding`` returns."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """Rounds ``x``; gradients pass straight through."""
        ...


def layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    round_operand: FusedRounding | None = None,
    round_result: FusedRounding | None = None,
) -> Tensor:
    """Normalizes the last dimension: ``(x - mean) / sqrt(variance + eps) * weight + bias`` (Ba et al., 2016).

    Statistics are accumulated in float32 (float64 for float64 inputs). Under autocast the input keeps its type.

    Args:
        x: ``[..., C]``, float32, bfloat16, float16 or float64.
        weight: ``[C]`` in x's type or float32, or None for ones.
        bias: ``[C]`` in x's type or float32, or None for zeros.
        eps: added to the variance, zero or positive.
        round_operand: rounds x in the same pass; gradients pass straight through.
        round_result: rounds the result.

    Returns:
        ``[..., C]`` in x's type.

    Raises:
        TypeError: an argument is no dense floating-point tensor, or the types do not go together.
        ValueError: shapes or devices do not go together, or eps is negative.
    """
    _check(x, weight, bias, eps)
    if not _has_kernel(x, round_operand, round_result):
        return _rounded(_with_torch_operators(_rounded(x, round_operand), weight, bias, eps), round_result)
    y: Tensor = torch.ops.vitfast.layer_norm_forward.default(
        x, weight, bias, float(eps), _raw(round_operand), _raw(round_result)
    )[0]
    return y


def add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    round_sum: FusedRounding | None = None,
    round_operand: FusedRounding | None = None,
    round_result: FusedRounding | None = None,
) -> tuple[Tensor, Tensor]:
    """Adds and normalizes in one pass over memory: ``summed = x + residual``, ``layer_norm(summed)``.

    Args:
        x: ``[..., C]``.
        residual: ``[..., C]`` of the same shape; where the types differ, both are promoted to the wider one.
        weight: as in ``layer_norm``.
        bias: as in ``layer_norm``.
        eps: as in ``layer_norm``.
        round_sum: rounds the sum, which is what is returned and normalized.
        round_operand: as in ``layer_norm``, of what is normalized; the sum is returned without it.
        round_result: as in ``layer_norm``.

    Returns:
        ``(summed, normalized)``, both ``[..., C]``; gradients flow through both.

    Raises:
        TypeError: as ``layer_norm``.
        ValueError: as ``layer_norm``.
    """
    check_tensor("residual", residual)
    check_tensor("x", x)
    check_like("residual", residual, "x", x, same_dtype=False)
    check_shape("residual", residual, tuple(x.shape), "x's shape")
    dtype = torch.promote_types(x.dtype, residual.dtype)
    x, residual = x.to(dtype), residual.to(dtype)
    _check(x, weight, bias, eps)
    if not _has_kernel(x, round_sum, round_operand, round_result):
        total = _rounded(x + residual, round_sum)
        normalized = _with_torch_operators(_rounded(total, round_operand), weight, bias, eps)
        return total, _rounded(normalized, round_result)
    summed, y, _, _ = torch.ops.vitfast.add_layer_norm_forward.default(
        x, residual, weight, bias, float(eps), _raw(round_sum), _raw(round_operand), _raw(round_result)
    )
    return summed, y


def _with_torch_operators(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Torch's fused operator, which takes one type: the widest of the arguments'."""
    dtype = x.dtype
    for parameter in (weight, bias):
        dtype = dtype if parameter is None else torch.promote_types(dtype, parameter.dtype)
    with torch.autocast(x.device.type, enabled=False):
        return F.layer_norm(x.to(dtype), x.shape[-1:], cast(weight, dtype), cast(bias, dtype), eps).to(x.dtype)


def _raw(rounding: FusedRounding | None) -> list[int]:
    return [] if rounding is None else rounding.raw


def _rounded(x: Tensor, rounding: FusedRounding | None) -> Tensor:
    return x if rounding is None else rounding(x)


def _check(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> None:
    check_tensor("x", x)
    if x.dim() == 0:
        raise ValueError("x must have at least one dimension [..., C], got a scalar")
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None:
            check_tensor(name, parameter)
            check_like(name, parameter, "x", x, same_dtype=parameter.dtype != torch.float32)
            check_shape(name, parameter, (x.shape[-1],), "x's last dimension")
            if x.dtype == torch.float64 and parameter.dtype != torch.float64:
                raise TypeError(f"{name} has dtype {parameter.dtype}, but x has torch.float64; convert one of them")
    check_eps(eps)


def _has_kernel(x: Tensor, *roundings: object) -> bool:
    device = x.device.type
    if device == "cuda" and x.dtype == torch.float64:
        return False
    # the gradient rounds the operand once more
    rounds = any(rounding is not None for rounding in roundings)
    return has_kernel("layer_norm", device) and (not rounds or has_kernel("quantize_float", device))


def _statistics_like(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[:-1], dtype=torch.promote_types(x.dtype, torch.float32))


def _fake_forward(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), _statistics_like(x), _statistics_like(x)


def _fake_add_forward(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape), _statistics_like(x), _statistics_like(x)


def _fake_backward(
    grad_y: Tensor,
    grad_summed: Tensor | None,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    has_bias: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    parameter = mean.new_empty(x.shape[-1:])
    grad_weight = None if weight is None else parameter
    return x.new_empty(x.shape), grad_weight, torch.empty_like(parameter) if has_bias else None


def _parameter_gradients(
    ctx: Any, grad_weight: Tensor | None, grad_bias: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The kernel accumulates in float32; the gradients take their parameters' types."""
    weight_dtype, bias_dtype = ctx.parameter_dtypes
    return (
        None if grad_weight is None else grad_weight.to(weight_dtype),
        None if grad_bias is None else grad_bias.to(bias_dtype),
    )


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, bias, _, ctx.round_operand, _ = inputs
    _save(ctx, x, weight, bias, output)


def _setup_add_context(ctx: Any, inputs: Any, output: Any) -> None:
    _, _, weight, bias, _, round_sum, round_operand, _ = inputs
    ctx.round_operand = [] if round_operand == round_sum else round_operand  # the sum is rounded already
    _save(ctx, output[0], weight, bias, output)


def _save(ctx: Any, normalized_input: Tensor, weight: Tensor | None, bias: Tensor | None, output: Any) -> None:
    *_, mean, rstd = output
    ctx.save_for_backward(normalized_input, mean, rstd, weight)
    ctx.parameter_dtypes = (None if weight is None else weight.dtype, None if bias is None else bias.dtype)
    ctx.mark_non_differentiable(mean, rstd)


def _gradients(ctx: Any, grad_y: Tensor, grad_summed: Tensor | None) -> tuple[Any, ...]:
    """Of what is normalized, weight and bias. The rounding of the operand is done once more rather than kept."""
    x, mean, rstd, weight = ctx.saved_tensors
    if ctx.round_operand:
        x = torch.ops.vitfast.quantize_float.default(x, ctx.round_operand, None)
    has_bias = ctx.parameter_dtypes[1] is not None
    grad_x, *grad_parameters = torch.ops.vitfast.layer_norm_backward.default(
        grad_y, grad_summed, x, mean, rstd, weight, has_bias
    )
    return grad_x, *_parameter_gradients(ctx, *grad_parameters)


def _backward(ctx: Any, grad_y: Tensor, *_: Any) -> tuple[Any, ...]:
    return *_gradients(ctx, grad_y, None), None, None, None


def _add_backward(ctx: Any, grad_summed: Tensor, grad_y: Tensor, *_: Any) -> tuple[Any, ...]:
    grad_x, grad_weight, grad_bias = _gradients(ctx, grad_y, grad_summed)
    return grad_x, grad_x, grad_weight, grad_bias, None, None, None, None


if has_kernel("layer_norm", "meta"):
    torch.library.register_fake("vitfast::layer_norm_forward")(_fake_forward)
    torch.library.register_fake("vitfast::add_layer_norm_forward")(_fake_add_forward)
    torch.library.register_fake("vitfast::layer_norm_backward")(_fake_backward)
    torch.library.register_autograd("vitfast::layer_norm_forward", _backward, setup_context=_setup_context)
    torch.library.register_autograd("vitfast::add_layer_norm_forward", _add_backward, setup_context=_setup_add_context)
    forbid_double_backward("layer_norm_backward", "layer_norm")
