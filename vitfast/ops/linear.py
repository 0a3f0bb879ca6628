"""A linear layer with what follows it: activation, scale, residual and rounding in one operator.

Shapes: K inputs, N outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vitfast.formats import FloatFormat
from vitfast.ops import reference
from vitfast.ops.autocast import autocast_dtype, cast
from vitfast.ops.autograd import forbid_double_backward
from vitfast.ops.checks import check_like, check_shape, check_tensor
from vitfast.ops.float_rounding import float_rounding
from vitfast.ops.library import has_kernel
from vitfast.ops.product_flops import product_flops
from vitfast.ops.quantize_float import quantize_float

ACTIVATIONS = ("none", "gelu", "gelu_tanh")
# activation -> the argument ``approximate`` of torch.nn.functional.gelu and of the operator ``mlp``
GELU_APPROXIMATE = {"gelu": "none", "gelu_tanh": "tanh"}


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

    On CUDA a bfloat16 or float16 product whose K and N are multiples of 8 does all of it on the way to memory. Under
    autocast the product runs in autocast's type and the residual keeps its own.

    Args:
        x: ``[..., K]``, float32, bfloat16, float16 or float64.
        weight: ``[N, K]``.
        bias: ``[N]`` or None.
        activation: ``"none"``, ``"gelu"`` (erf) or ``"gelu_tanh"`` (Hendrycks and Gimpel, 2016).
        scale: ``[N]`` or None: a LayerScale (Touvron et al., 2021).
        residual: ``[..., N]`` or None.
        format: a ``vitfast.FloatFormat`` to which the result is rounded (to nearest, ties to even), as
            ``quantize_float`` would; gradients pass straight through. None keeps the result.

    Returns:
        ``[..., N]``.

    Raises:
        TypeError: an argument is no dense floating-point tensor, or the types differ.
        ValueError: shapes or devices do not go together, or ``activation`` is unknown.
    """
    _check(x, weight, bias, activation, scale, residual)
    rounding = [] if format is None else float_rounding(format)
    dtype = autocast_dtype(x)
    if dtype is not None:
        x, weight, bias, scale = cast(x, dtype), cast(weight, dtype), cast(bias, dtype), cast(scale, dtype)
    elif residual is not None:
        check_like("residual", residual, "x", x)
    added_outside = residual if residual is not None and residual.dtype != x.dtype else None
    added_inside = residual if added_outside is None else None
    rounded_inside = rounding if added_outside is None else []

    if has_kernel("linear", x.device.type):
        save_for_backward = torch.is_grad_enabled() and any(
            tensor is not None and tensor.requires_grad for tensor in (x, weight, bias, scale)
        )
        out: Tensor = torch.ops.vitfast.linear_forward.default(
            x, weight, bias, activation, scale, added_inside, rounded_inside, save_for_backward
        )[0]
    else:
        with torch.autocast(x.device.type, enabled=False):
            out = reference.linear(x, weight, bias, activation, scale, added_inside)
        if format is not None and added_outside is None:
            out = quantize_float(out, format)
    if added_outside is None:
        return out
    out = added_outside + out
    return out if format is None else quantize_float(out, format)


def _check(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, scale: Tensor | None, residual: Tensor | None
) -> None:
    check_tensor("x", x)
    if x.dim() == 0:
        raise ValueError("x must have at least one dimension [..., K], got a scalar")
    check_tensor("weight", weight, ndim=2, shape="[N, K]")
    outputs = weight.shape[0]
    check_shape("weight", weight, (outputs, x.shape[-1]), "[N, K] with x's last dimension")
    in_autocast = autocast_dtype(x) is not None
    for name, parameter in {"weight": weight, "bias": bias, "scale": scale}.items():
        if parameter is not None:
            check_tensor(name, parameter)
            check_like(name, parameter, "x", x, same_dtype=not in_autocast)
            if parameter is not weight:
                check_shape(name, parameter, (outputs,), "weight's N")
    if residual is not None:
        check_tensor("residual", residual)
        check_like("residual", residual, "x", x, same_dtype=False)
        check_shape("residual", residual, (*x.shape[:-1], outputs), "x's leading dimensions and weight's N")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")


def _saves_sum(activation: str, scale: Tensor | None, save_for_backward: bool) -> bool:
    return save_for_backward and (activation != "none" or scale is not None)


def _fake_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    scale: Tensor | None,
    residual: Tensor | None,
    round_result: list[int],
    save_for_backward: bool,
) -> tuple[Tensor, Tensor | None]:
    shape = (*x.shape[:-1], weight.shape[0])
    return x.new_empty(shape), x.new_empty(shape) if _saves_sum(activation, scale, save_for_backward) else None


def _fake_backward(
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor,
    pre_activation: Tensor | None,
    scale: Tensor | None,
    activation: str,
    has_bias: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    return (
        x.new_empty(x.shape),
        weight.new_empty(weight.shape),
        weight.new_empty(weight.shape[:1]) if has_bias else None,
        weight.new_empty(weight.shape[:1]) if scale is not None else None,
    )


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, bias, ctx.activation, scale, residual, _, ctx.saved = inputs
    ctx.has_bias, ctx.has_residual = bias is not None, residual is not None
    pre_activation = output[1]
    ctx.save_for_backward(x, weight, pre_activation, scale)
    if pre_activation is not None:
        ctx.mark_non_differentiable(pre_activation)


def _backward(ctx: Any, grad_out: Tensor, *_: Any) -> tuple[Any, ...]:
    x, weight, pre_activation, scale = ctx.saved_tensors
    grad_residual = grad_out if ctx.has_residual else None
    if not ctx.saved:  # only the residual needs a gradient
        return None, None, None, None, None, grad_residual, None, None
    grad_x, grad_weight, grad_bias, grad_scale = torch.ops.vitfast.linear_backward.default(
        grad_out, x, weight, pre_activation, scale, ctx.activation, ctx.has_bias
    )
    return grad_x, grad_weight, grad_bias, None, grad_scale, grad_residual, None, None


def _register() -> None:
    from torch.utils.flop_counter import register_flop_formula

    library = torch.ops.vitfast
    torch.library.register_fake("vitfast::linear_forward")(_fake_forward)
    torch.library.register_fake("vitfast::linear_backward")(_fake_backward)
    torch.library.register_autograd("vitfast::linear_forward", _backward, setup_context=_setup_context)
    forbid_double_backward("linear_backward", "linear")
    register_flop_formula(library.linear_forward)(lambda x, weight, *_, **__: product_flops(x, weight[0]))
    register_flop_formula(library.linear_backward)(lambda grad, x, weight, *_, **__: 2 * product_flops(x, weight[0]))


if has_kernel("linear", "meta"):
    _register()
