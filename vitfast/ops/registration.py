"""Registration of fake kernels, autograd formulas and FLOP formulas of the raw operators with torch."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch

from vitfast.ops.autocast import MaybeTensor
from vitfast.ops.library import is_loaded


def register(
    operator: str,
    fake: Callable[..., Any],
    *,
    flops: Callable[..., int] | None = None,
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
    gradient_of: str | None = None,
) -> None:
    """Registers what torch requires besides the kernels of a raw operator; a no-op without the native library.

    Args:
        operator: name in ``torch.ops.vitfast``.
        fake: fake kernel; its parameters are those of the schema that it reads, in any order.
        flops: formula for ``torch.utils.flop_counter``; as ``fake``, with shapes in place of tensors.
        backward: autograd formula.
        setup_context: saves tensors for ``backward``.
        gradient_of: public name of the operator whose gradient this operator computes; double backward is then an
            error that names it.
    """
    if not is_loaded():
        return
    from torch.utils.flop_counter import register_flop_formula

    name = f"vitfast::{operator}"
    torch.library.register_fake(name)(_with_arguments_of(operator, fake))
    if gradient_of is not None:
        backward = _no_double_backward(gradient_of)
    if backward is not None:
        torch.library.register_autograd(name, backward, setup_context=setup_context)
        if setup_context is not None:
            _FUNCTIONS[operator] = _function(operator, backward, setup_context)
    if flops is not None:
        register_flop_formula(getattr(torch.ops.vitfast, operator))(_with_arguments_of(operator, flops))


_FUNCTIONS: dict[str, type[torch.autograd.Function]] = {}  # of the operators that have gradients


def call(operator: str, *arguments: Any) -> Any:
    """Calls a raw operator with all its arguments, in eager mode by less Python code than torch.library's.

    What torch.library runs for autograd takes a third of the time of a small operator and its gradient.
    """
    raw = getattr(torch.ops.vitfast, operator).default
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return raw(*arguments)
    if not torch.is_grad_enabled():
        with torch._C._AutoDispatchBelowAutograd():
            return raw(*arguments)
    function = _FUNCTIONS.get(operator)
    return raw(*arguments) if function is None else function.apply(*arguments)


def _function(
    operator: str, backward: Callable[..., Any], setup_context: Callable[..., None]
) -> type[torch.autograd.Function]:
    raw = getattr(torch.ops.vitfast, operator).default

    def forward(ctx: Any, *arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            outputs = raw(*arguments)
        setup_context(ctx, arguments, outputs)
        return outputs

    parts = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(operator, (torch.autograd.Function,), parts)


_IN_PLACE = None if not is_loaded() else torch.library.Library("vitfast", "IMPL")


def register_in_place(operator: str) -> None:
    """Registers what torch requires besides the kernels of an operator that changes its argument ``x``.

    Each call increments the version of ``x``, so that autograd notices if it had saved it; torch does this for its own
    operators only.
    """
    register(operator, lambda: None)
    if _IN_PLACE is None:
        return
    raw = getattr(torch.ops.vitfast, operator).default

    def call(x: torch.Tensor, *arguments: Any) -> None:
        with torch._C._AutoDispatchBelowADInplaceOrView():
            raw(x, *arguments)
        torch.autograd.graph.increment_version(x)

    _IN_PLACE.impl(operator, call, "ADInplaceOrView")


def _with_arguments_of(operator: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function callable with all arguments of an operator; it gets those that it names."""
    schema = getattr(torch.ops.vitfast, operator).default._schema
    names = [argument.name for argument in schema.arguments]
    defaults = {argument.name: argument.default_value for argument in schema.arguments if argument.has_default_value()}
    read = list(inspect.signature(function).parameters)

    def call(*arguments: Any, **options: Any) -> Any:
        given = {**defaults, **dict(zip(names, arguments, strict=False)), **options}
        return function(*(given[name] for name in read))

    return call


def _no_double_backward(public_name: str) -> Callable[..., NoReturn]:
    def backward(ctx: Any, *grads: Any) -> NoReturn:
        raise NotImplementedError(
            f"vitfast.ops.{public_name} has no second derivative; for double backward compute it with "
            f"vitfast.ops.reference.{public_name}"
        )

    return backward


def empty_like(x: MaybeTensor) -> MaybeTensor:
    """Returns a contiguous tensor of x's shape and dtype; the fake kernel of element-wise operators."""
    return None if x is None else x.new_empty(x.shape)


def gemm_flops(x: Sequence[int], n: int) -> int:
    """FLOPs of ``x wᵀ``, two per multiply-add, from the shapes of x ``[..., K]`` and w ``[n, K]``."""
    flops: int = 2 * math.prod(x) * n
    return flops


def attention_flops(qkv: Sequence[int]) -> int:
    """FLOPs of attention's two GEMMs, from the shape of qkv ``[B, N, 3, H, D]``."""
    batch, tokens, _, heads, head_dim = qkv
    return 4 * batch * heads * tokens * tokens * head_dim
