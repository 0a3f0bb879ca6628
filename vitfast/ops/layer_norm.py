"""LayerNorm, alone and fused with the residual addition before it.

Shapes: C channels, the normalized dimension.

For a single small image torch's operator is a few microseconds faster, the cost of the checks. It is still not called:
results do not depend on the batch size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from vitfast.ops import reference
from vitfast.ops.arguments import check_like, check_rows, check_tensor, needs_gradient
from vitfast.ops.autocast import autocast_off, cast
from vitfast.ops.library import has_kernel
from vitfast.ops.registration import call, empty_like, register
from vitfast.ops.rounding import ROUNDING_CODES

CUDA_MAX_CHANNELS = 1280  # limit of the CUDA kernels


class FusedRounding(Protocol):
    """A deterministic rounding to a float format, as a function and encoded for the raw operators."""

    @property
    def raw(self) -> list[int]:
        """The result of ``float_rounding``."""

    def __call__(self, x: Tensor) -> Tensor:
        """Rounds ``x``; gradients pass straight through."""


def layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    round_operand: FusedRounding | None = None,
    round_result: FusedRounding | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Normalizes the last dimension: ``(x - mean) / sqrt(variance + eps) * weight + bias`` (Ba et al., 2016).

    Statistics are accumulated in float32 (float64 for float64 inputs). Under autocast the input keeps its dtype.

    Args:
        x: ``[..., C]``, float32, bfloat16, float16 or float64.
        weight: ``[C]`` in x's dtype or float32, or None for ones.
        bias: ``[C]`` in x's dtype or float32, or None for zeros.
        eps: added to the variance, zero or positive.
        round_operand: rounds x in the same pass; gradients pass straight through.
        round_result: rounds the result.
        out_dtype: dtype of the result; None for x's. On CUDA a float32 x is converted in the same pass.

    Returns:
        ``[..., C]``.

    Raises:
        TypeError: an argument is no dense floating-point tensor, or the dtypes do not match.
        ValueError: shapes or devices do not match, or eps is negative.
    """
    _check(x, weight, bias, eps, out_dtype)
    if not _has_kernel(x, needs_gradient(x, weight, bias), round_operand, round_result):
        return cast(_with_torch_operators(x, weight, bias, eps, round_operand, round_result), out_dtype)
    fused = out_dtype if _mixes(x, out_dtype, round_operand, round_result) else None
    y: Tensor
    y, _, _ = call("layer_norm_forward", x, weight, bias, float(eps), _raw(round_operand), _raw(round_result), fused)
    return cast(y, out_dtype)


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
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Adds and normalizes in one pass over memory: ``summed = x + residual``, ``layer_norm(summed)``.

    Args:
        x: ``[..., C]``.
        residual: ``[..., C]``, x's shape; if the dtypes differ, the sum has the wider one.
        weight: as in ``layer_norm``.
        bias: as in ``layer_norm``.
        eps: as in ``layer_norm``.
        round_sum: rounds the sum before it is returned and normalized.
        round_operand: rounds the operand of the normalization, as in ``layer_norm``; not the returned sum.
        round_result: as in ``layer_norm``.
        out_dtype: dtype of ``normalized``; None for that of the sum. On CUDA a float32 residual is added to a narrower
            x of this dtype in the same pass.

    Returns:
        ``(summed, normalized)``, both ``[..., C]``; gradients flow through both.

    Raises:
        TypeError, ValueError: as ``layer_norm``.
    """
    check_tensor("residual", residual)
    check_tensor("x", x)
    check_like("residual", residual, "x", x, x.shape, "x's shape", same_dtype=False)
    dtype = torch.promote_types(x.dtype, residual.dtype)
    residual = residual.to(dtype)
    _check(residual, weight, bias, eps, out_dtype)
    if not _has_kernel(residual, needs_gradient(x, residual, weight, bias), round_sum, round_operand, round_result):
        total = _rounded(x.to(dtype) + residual, round_sum)
        return total, cast(_with_torch_operators(total, weight, bias, eps, round_operand, round_result), out_dtype)
    if x.dtype != out_dtype or not _mixes(residual, out_dtype, round_sum, round_operand, round_result):
        x = x.to(dtype)
    summed, y, _, _ = call(
        "add_layer_norm_forward",
        x,
        residual,
        weight,
        bias,
        float(eps),
        _raw(round_sum),
        _raw(round_operand),
        _raw(round_result),
    )
    return summed, cast(y, out_dtype)


def _with_torch_operators(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    round_operand: FusedRounding | None,
    round_result: FusedRounding | None,
) -> Tensor:
    with autocast_off(x):
        return _rounded(reference.layer_norm(_rounded(x, round_operand), weight, bias, eps), round_result)


def _raw(rounding: FusedRounding | None) -> list[int] | None:
    return None if rounding is None else rounding.raw


def _rounded(x: Tensor, rounding: FusedRounding | None) -> Tensor:
    return x if rounding is None else rounding(x)


def _check(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, out_dtype: torch.dtype | None) -> None:
    check_rows("x", x, "[..., C]")
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None:
            check_tensor(name, parameter)
            same_dtype = parameter.dtype != torch.float32
            check_like(name, parameter, "x", x, x.shape[-1:], "x's last dimension", same_dtype=same_dtype)
            if x.dtype == torch.float64 and parameter.dtype != torch.float64:
                raise TypeError(f"{name} has dtype {parameter.dtype}, but x has torch.float64; convert one of them")
    if not isinstance(eps, (int, float)) or isinstance(eps, bool):
        raise TypeError(f"eps must be a number, got {type(eps).__name__}")
    if not eps >= 0.0:
        raise ValueError(f"eps must be zero or positive, got {eps}")
    if out_dtype is not None and not (isinstance(out_dtype, torch.dtype) and out_dtype.is_floating_point):
        raise TypeError(f"out_dtype must be a floating-point dtype or None, got {out_dtype}")


def _has_kernel(x: Tensor, with_gradients: bool, *roundings: FusedRounding | None) -> bool:
    device, given = x.device.type, [rounding for rounding in roundings if rounding is not None]
    if device == "cuda" and not _fits_cuda(x.dtype, x.shape[-1], given):
        return False
    # the backward rounds the operand again
    return has_kernel("layer_norm", device, with_gradients) and (not given or has_kernel("quantize_float", device))


def _fits_cuda(dtype: torch.dtype, channels: int, roundings: Sequence[FusedRounding]) -> bool:
    """Whether the CUDA kernel supports rows of ``dtype``, which are packs of 16 bytes, and ``roundings``."""
    fits = dtype != torch.float64 and channels * dtype.itemsize % 16 == 0 and channels <= CUDA_MAX_CHANNELS
    nearest = ROUNDING_CODES["nearest_even"]
    return fits and all(dtype == torch.float32 and rounding.raw[-1] == nearest for rounding in roundings)


def _mixes(stream: Tensor, out_dtype: torch.dtype | None, *roundings: object) -> bool:
    """Whether the CUDA kernel that supports ``stream`` can write a narrower result, of ``out_dtype``."""
    is_narrow = stream.dtype == torch.float32 and out_dtype in (torch.float16, torch.bfloat16)
    return stream.is_cuda and is_narrow and stream.shape[-1] % 8 == 0 and not any(roundings)


def _fake_forward(x: Tensor, out_dtype: torch.dtype | None) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.new_empty(x.shape[:-1], dtype=torch.promote_types(x.dtype, torch.float32))
    return x.new_empty(x.shape, dtype=out_dtype or x.dtype), mean, empty_like(mean)


def _fake_add_forward(x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (empty_like(residual), *_fake_forward(residual, x.dtype))


def _fake_backward(
    x: Tensor, mean: Tensor, weight: Tensor | None, has_bias: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    grad_weight, grad_bias = mean.new_empty(x.shape[-1:]), mean.new_empty(x.shape[-1:])
    return empty_like(x), None if weight is None else grad_weight, grad_bias if has_bias else None


# --- autograd of both operators; with the addition there is a result, an input and a rounding more ---


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    *summed, _, mean, rstd = output
    adds = len(summed)
    weight, bias, _, *roundings = inputs[1 + adds :]
    round_operand = roundings[adds]
    ctx.round_operand = None if adds and round_operand == roundings[0] else round_operand  # the saved sum is rounded
    ctx.dtypes = [tensor.dtype for tensor in inputs[: 1 + adds]]
    ctx.save_for_backward(summed[0] if adds else inputs[0], mean, rstd, weight)
    ctx.parameter_dtypes = (None if weight is None else weight.dtype, None if bias is None else bias.dtype)
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)  # no zeros for mean and rstd


def _backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
    *grad_summed, grad_y, _, _ = grads
    adds = len(grad_summed)
    x, mean, rstd, weight = ctx.saved_tensors
    if ctx.round_operand:  # the operand is rounded again rather than saved
        x = torch.ops.vitfast.quantize_float.default(x, ctx.round_operand, None)
    if grad_y is None:  # only the sum was used; y has the dtype of the branch
        grad_y = torch.zeros_like(x, dtype=ctx.dtypes[0])
    weight_dtype, bias_dtype = ctx.parameter_dtypes
    grad_x, grad_weight, grad_bias = call(
        "layer_norm_backward", grad_y, grad_summed[0] if adds else None, x, mean, rstd, weight, bias_dtype is not None
    )
    # the kernel accumulates the parameters' gradients in float32
    parameters = cast(grad_weight, weight_dtype), cast(grad_bias, bias_dtype)
    return *(cast(grad_x, dtype) for dtype in ctx.dtypes), *parameters, *[None] * 4


_AUTOGRAD: dict[str, Any] = {"backward": _backward, "setup_context": _setup_context}
register("layer_norm_forward", _fake_forward, **_AUTOGRAD)
register("add_layer_norm_forward", _fake_add_forward, **_AUTOGRAD)
register("layer_norm_backward", _fake_backward, gradient_of="layer_norm")
