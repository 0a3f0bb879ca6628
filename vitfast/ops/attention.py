"""Scaled dot-product attention with a differentiable bias and optionally returned logits.

Shapes: B batch, H heads, N tokens, D head dimension. The ``packed`` form keeps q, k and v, and their gradients, in one
tensor ``[B, N, 3, H, D]``, the result of a single linear layer.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from vitfast.ops import reference
from vitfast.ops.arguments import attention_scale, check_like, check_tensor, needs_gradient
from vitfast.ops.autocast import autocast_dtype, cast
from vitfast.ops.library import fills_gpu, has_kernel, has_shared_memory, is_onnx_export
from vitfast.ops.registration import attention_flops, call, empty_like, register

if TYPE_CHECKING:
    from typing_extensions import TypedDict, Unpack

    class _Options(TypedDict, total=False):
        bias: Tensor | None
        scale: float | None
        dropout_p: float


# values of csrc/attention/attention.h, for pure PyTorch
_LIMITS = {
    "max_head_dim": 128,
    "head_dim_multiple": 8,
    "cuda_max_tokens": 200,
    "cuda_max_head_dim": 64,
    "backward_small_tokens": 112,
    "backward_largest_bytes": 119 * 1024,
}
with contextlib.suppress(ImportError):
    from vitfast._C import attention_limits

    _LIMITS.update(attention_limits())
MAX_HEAD_DIM = _LIMITS["max_head_dim"]
HEAD_DIM_MULTIPLE = _LIMITS["head_dim_multiple"]
CUDA_DTYPES = (torch.float16, torch.bfloat16)
CUDA_MAX_TOKENS = _LIMITS["cuda_max_tokens"]
CUDA_MAX_HEAD_DIM = _LIMITS["cuda_max_head_dim"]
# with more tokens, the backward needs this much shared memory, which some GPUs do not have
BACKWARD_SMALL_TOKENS = _LIMITS["backward_small_tokens"]
BACKWARD_LARGEST_BYTES = _LIMITS["backward_largest_bytes"]


@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, *, return_logits: Literal[False] = ..., **options: Unpack[_Options]
) -> Tensor: ...
@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, *, return_logits: Literal[True], **options: Unpack[_Options]
) -> tuple[Tensor, Tensor]: ...
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float | None = None,
    return_logits: bool = False,
    dropout_p: float = 0.0,
) -> Tensor | tuple[Tensor, Tensor]:
    """Computes ``softmax(scale * q kᵀ + bias) v`` (Vaswani et al., 2017).

    On the CPU the kernels support head dimensions up to 128 that are multiples of 8 (a warning names others). On CUDA
    they support float16 and bfloat16, up to 200 tokens and head dimensions up to 64 that are multiples of 8, gradients
    of packed q, k and v, and bias and logits if there are at least as many heads in the batch as multiprocessors; in
    other cases torch's operators are faster. These run everything else, and dropout. On CUDA an infinite element of q,
    k or v gives NaN.

    Args:
        q: ``[B, H, N, D]``, float32, bfloat16, float16 or float64.
        k: ``[B, H, N, D]``.
        v: ``[B, H, N, D]``.
        bias: ``[B, H, N, N]`` or ``[1, H, N, N]``, added to the logits; differentiable. The result of a row of ``-inf``
            is zero, as in torch's fused operator.
        scale: factor of the logits; None is ``D ** -0.5``.
        return_logits: also return ``scale * q kᵀ + bias``, which is differentiable.
        dropout_p: probability of dropping a softmax probability, 0 <= p < 1.

    Returns:
        ``[B, H, N, D]``; with ``return_logits`` a pair with the logits ``[B, H, N, N]``.

    Raises:
        TypeError: an argument is no dense floating-point tensor, or the dtypes differ.
        ValueError: shapes or devices do not match, or dropout_p is out of range.
    """
    check_tensor("q", q, ndim=4, shape="[B, H, N, D]")
    for name, tensor in (("k", k), ("v", v)):
        check_tensor(name, tensor, ndim=4, shape="[B, H, N, D]")
        check_like(name, tensor, "q", q, q.shape, "q's shape")
    return _attention("q", (q, k, v), tuple(q.shape), bias, scale, return_logits, dropout_p)


@overload
def attention_packed(qkv: Tensor, *, return_logits: Literal[False] = ..., **options: Unpack[_Options]) -> Tensor: ...
@overload
def attention_packed(
    qkv: Tensor, *, return_logits: Literal[True], **options: Unpack[_Options]
) -> tuple[Tensor, Tensor]: ...
def attention_packed(
    qkv: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float | None = None,
    return_logits: bool = False,
    dropout_p: float = 0.0,
) -> Tensor | tuple[Tensor, Tensor]:
    """``attention`` on the packed result of one linear layer, without a transpose or copy.

    Takes qkv ``[B, N, 3, H, D]`` and the options of ``attention``; raises the same errors. Returns a contiguous
    ``[B, N, H, D]``; with ``return_logits`` a pair with the logits ``[B, H, N, N]``.
    """
    check_tensor("qkv", qkv, ndim=5, shape="[B, N, 3, H, D]")
    if qkv.shape[2] != 3:
        raise ValueError(f"qkv must have shape [B, N, 3, H, D], got {list(qkv.shape)}")
    batch, tokens, _, heads, head_dim = qkv.shape
    return _attention("qkv", (qkv,), (batch, heads, tokens, head_dim), bias, scale, return_logits, dropout_p)


def _attention(
    name: str,
    tensors: tuple[Tensor, ...],  # q, k and v, or qkv
    sizes_BHND: tuple[int, ...],
    bias: Tensor | None,
    scale: float | None,
    return_logits: bool,
    dropout_p: float,
) -> Tensor | tuple[Tensor, Tensor]:
    """Checks the options of both forms and computes one of them; ``name`` is that of the first tensor."""
    batch, heads, tokens, head_dim = sizes_BHND
    first = tensors[0]
    if head_dim == 0:
        raise ValueError(f"{name} must have a head dimension of at least 1, got shape {list(first.shape)}")
    if bias is not None:
        check_tensor("bias", bias, ndim=4, shape="[B or 1, H, N, N]")
        bias_shape = (1 if bias.shape[0] == 1 else batch, heads, tokens, tokens)
        check_like("bias", bias, name, first, bias_shape, f"[B or 1, H, N, N] of {name}")
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p must be at least 0 and below 1, got {dropout_p}")
    scale = attention_scale(scale, head_dim)

    dtype = autocast_dtype(first)
    tensors, bias = tuple(cast(tensor, dtype) for tensor in tensors), cast(bias, dtype)
    is_packed = len(tensors) == 1
    if not dropout_p and _has_kernel(tensors, sizes_BHND, bias, return_logits):
        operator = "attention_packed_forward" if is_packed else "attention_forward"
        out, _, logits = call(operator, *tensors, bias, scale, return_logits)
    else:
        q_BHND, k_BHND, v_BHND = tensors[0].permute(2, 0, 3, 1, 4) if is_packed else tensors
        out, logits = _with_torch_operators(q_BHND, k_BHND, v_BHND, bias, scale, return_logits, dropout_p)
        if is_packed and is_onnx_export():  # which decomposes the operator to one whose result has other strides
            out = out.transpose(1, 2).clone(memory_format=torch.contiguous_format)
        elif is_packed:
            out = out.transpose(1, 2).contiguous()
    return out if logits is None else (out, logits)


def is_supported_head_dim(head_dim: int) -> bool:
    """Whether the attention kernels support a head dimension."""
    return head_dim <= MAX_HEAD_DIM and head_dim % HEAD_DIM_MULTIPLE == 0


def fits_cuda(dtype: torch.dtype, tokens: int, head_dim: int) -> bool:
    """Whether the CUDA attention kernels support q, k and v of these sizes."""
    fits = tokens <= CUDA_MAX_TOKENS and head_dim <= CUDA_MAX_HEAD_DIM and head_dim % HEAD_DIM_MULTIPLE == 0
    return fits and dtype in CUDA_DTYPES


def _has_kernel(
    tensors: tuple[Tensor, ...], sizes_BHND: tuple[int, ...], bias: Tensor | None, return_logits: bool
) -> bool:
    device_type, head_dim = tensors[0].device.type, sizes_BHND[-1]
    with_gradients = needs_gradient(*tensors, bias)
    if not has_kernel("attention", device_type, with_gradients):
        return False
    if device_type == "cuda":
        has_logits = bias is not None or return_logits
        return _has_cuda_kernel(tensors, sizes_BHND, has_logits, with_gradients)
    if not is_supported_head_dim(head_dim) and not torch.compiler.is_compiling():  # a warning cannot be traced
        warnings.warn(
            f"attention: the kernel supports head dimensions up to {MAX_HEAD_DIM} that are multiples of "
            f"{HEAD_DIM_MULTIPLE}; {head_dim} runs on torch's operators",
            stacklevel=4,
        )
    return is_supported_head_dim(head_dim)


def _has_cuda_kernel(
    tensors: tuple[Tensor, ...], sizes_BHND: tuple[int, ...], has_logits: bool, with_gradients: bool
) -> bool:
    """Whether there is a CUDA kernel for a call that is not slower than torch's operator, measured on an H100."""
    batch, heads, tokens, head_dim = sizes_BHND
    first = tensors[0]
    if not fits_cuda(first.dtype, tokens, head_dim):
        return False
    if has_logits and not fills_gpu(batch * heads, first.device):
        return False
    if not with_gradients:
        return True
    # separate gradients of q, k and v are slower than torch's, which copies them into those of a packed tensor
    is_packed = len(tensors) == 1
    return is_packed and (tokens <= BACKWARD_SMALL_TOKENS or has_shared_memory(first.device, BACKWARD_LARGEST_BYTES))


def _with_torch_operators(
    q_BHND: Tensor,
    k_BHND: Tensor,
    v_BHND: Tensor,
    bias: Tensor | None,
    scale: float,
    return_logits: bool,
    dropout_p: float,
) -> tuple[Tensor, Tensor | None]:
    with torch.autocast(q_BHND.device.type, enabled=False):
        if return_logits:
            return reference.attention(q_BHND, k_BHND, v_BHND, bias, scale, dropout_p)
        return torch_attention(q_BHND, k_BHND, v_BHND, bias, scale=scale, dropout_p=dropout_p), None


def torch_attention(
    q_BHTD: Tensor,
    k_BHND: Tensor,
    v_BHND: Tensor,
    bias: Tensor | None = None,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """Torch's fused operator.

    It detaches an empty result, and returns None for it on some GPUs (torch 2.11, bfloat16 on an H100); that of the
    reference has gradients.
    """
    if q_BHTD.numel() == 0:
        return reference.attention(q_BHTD, k_BHND, v_BHND, bias, attention_scale(scale, q_BHTD.shape[-1]), dropout_p)[0]
    return F.scaled_dot_product_attention(q_BHTD, k_BHND, v_BHND, bias, dropout_p, scale=scale)


# --- fake kernels ---


def _fake_statistics(like: Tensor, sizes_BHN: tuple[int, ...], return_logits: bool) -> tuple[Tensor, Tensor | None]:
    """The log-sum-exp of each row, and the logits."""
    lse = like.new_empty(sizes_BHN, dtype=torch.promote_types(like.dtype, torch.float32))
    return lse, like.new_empty((*sizes_BHN, sizes_BHN[2])) if return_logits else None


def _fake_forward(q: Tensor, return_logits: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    return empty_like(q), *_fake_statistics(q, tuple(q.shape[:3]), return_logits)


def fake_packed_out(qkv: Tensor) -> Tensor:
    """Returns an empty ``[B, N, H, D]`` for qkv ``[B, N, 3, H, D]``."""
    batch, tokens, _, heads, head_dim = qkv.shape
    return qkv.new_empty((batch, tokens, heads, head_dim))


def _fake_packed_forward(qkv: Tensor, return_logits: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    out = fake_packed_out(qkv)
    return out, *_fake_statistics(qkv, (out.shape[0], out.shape[2], out.shape[1]), return_logits)


def _fake_backward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, need_bias_grad: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    return empty_like(q), empty_like(k), empty_like(v), empty_like(bias) if need_bias_grad else None


def _fake_packed_backward(qkv: Tensor, bias: Tensor | None, need_bias_grad: bool) -> tuple[Tensor, Tensor | None]:
    return empty_like(qkv), empty_like(bias) if need_bias_grad else None


# --- autograd and FLOPs of both forms, whose operators have the same arguments after q, k and v or qkv ---


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    *tensors, ctx.scale, _ = inputs
    out, lse, _ = output
    ctx.save_for_backward(*tensors, out, lse)
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)  # no zeros for lse


def _backward(ctx: Any, grad_out: Tensor | None, _: None, grad_logits: Tensor | None) -> tuple[Any, ...]:
    *qkv, bias, out, lse = ctx.saved_tensors
    operator = "attention_packed_backward" if len(qkv) == 1 else "attention_backward"
    need_bias_grad = bias is not None and ctx.needs_input_grad[len(qkv)]
    if grad_out is None:  # only the logits were used
        grad_out = torch.zeros_like(out)
    grads = call(operator, grad_out, grad_logits, *qkv, bias, out, lse, ctx.scale, need_bias_grad)
    return *grads, None, None


def _flops(q: Sequence[int]) -> int:
    batch, heads, tokens, head_dim = q
    return attention_flops((batch, tokens, 3, heads, head_dim))


# the backward has five GEMMs, the forward two
_AUTOGRAD: dict[str, Any] = {"backward": _backward, "setup_context": _setup_context}
register("attention_forward", _fake_forward, flops=_flops, **_AUTOGRAD)
register("attention_backward", _fake_backward, flops=lambda q: _flops(q) * 5 // 2, gradient_of="attention")
register("attention_packed_forward", _fake_packed_forward, flops=attention_flops, **_AUTOGRAD)
register(
    "attention_packed_backward",
    _fake_packed_backward,
    flops=lambda qkv: attention_flops(qkv) * 5 // 2,
    gradient_of="attention",
)
