"""The CUDA kernels as operators, on a GPU. Their arithmetic is tested without one, in tests/simt.

``VITFAST_CUDA_KERNELS=all`` makes them run before they are verified.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from support import plain
from support.accuracy import assert_same_bits
from support.simt_attention import AttentionCase, random_backward, random_case
from vitfast import ops
from vitfast.formats import FloatFormat
from vitfast.ops.library import has_kernel
from vitfast.ops.rounding import ROUNDING_CODES
from vitfast.ops.tolerance import BACKWARD_FACTOR, FORWARD_FACTOR, assert_as_accurate

pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def _needs_kernels() -> None:
    if not has_kernel("attention", "cuda"):
        pytest.skip("torch's operators run on this GPU: set VITFAST_CUDA_KERNELS=all")


def run(case: AttentionCase) -> dict[str, Tensor]:
    """The packed operator on the GPU, its results on the CPU."""
    qkv, bias = case.qkv.cuda(), None if case.bias is None else case.bias.cuda()
    scale = case.qkv.shape[-1] ** -0.5 if case.scale is None else case.scale
    out, lse, logits = torch.ops.vitfast.attention_packed_forward(qkv, bias, scale, True)
    return {"out": out.cpu(), "lse": lse.cpu(), "logits": logits.cpu()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [32, 40, 48, 64, 80, 96, 128])
@pytest.mark.parametrize("tokens", [1, 16, 17, 50, 101, 145, 197, 256, 257, 577])
def test_attention_is_accurate(tokens: int, head_dim: int, dtype: torch.dtype) -> None:
    case = random_case(5, 3, tokens, head_dim, dtype, bias=torch.randn(1, 3, tokens, tokens).to(dtype))
    case.check(run(case))


def test_attention_equals_the_emulation_but_for_the_order_of_sums() -> None:
    case = random_case(2, 3, 197, 64)
    torch.testing.assert_close(run(case)["out"], case.run()["out"], rtol=2e-3, atol=2e-4)


def test_attention_of_float32_ignores_allow_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    case = random_case(2, 3, 197, 64, torch.float32)
    case.check(run(case))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_attention_reads_any_strides(dtype: torch.dtype) -> None:
    qkv = torch.randn(2, 50, 3, 3, 64, device="cuda").to(dtype)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    expected = ops.attention(q.contiguous(), k.contiguous(), v.contiguous())
    # from an address that is no multiple of 16 bytes
    shifted = torch.empty(q.numel() + 1, device="cuda", dtype=dtype)[1:].view(q.shape).copy_(q)
    for other in (q, shifted, q.transpose(-1, -2).contiguous().transpose(-1, -2)):
        assert torch.equal(ops.attention(other, k, v), expected)


@pytest.mark.parametrize("shape", [(0, 50, 3, 3, 64), (2, 0, 3, 3, 64), (2, 50, 3, 0, 64)])
def test_attention_takes_empty_tensors(shape: tuple[int, ...]) -> None:
    assert ops.attention_packed(torch.empty(shape, device="cuda").half()).numel() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bias_batch", [0, 1, 5])
@pytest.mark.parametrize(
    ("tokens", "head_dim"), [(2, 64), (50, 32), (101, 48), (112, 128), (197, 64), (197, 128), (577, 64)]
)
def test_gradients_of_attention_are_accurate(tokens: int, head_dim: int, bias_batch: int, dtype: torch.dtype) -> None:
    bias = torch.randn(bias_batch, 3, tokens, tokens).to(dtype) if bias_batch else None
    grad_logits = torch.randn(5, 3, tokens, tokens).to(dtype) if bias_batch else None
    case = random_backward(5, 3, tokens, head_dim, dtype, bias=bias, grad_logits=grad_logits)
    leaves = {"qkv": case.qkv.cuda().requires_grad_()}
    if bias is not None:
        leaves["bias"] = bias.cuda().requires_grad_()
    results = ops.attention_packed(leaves["qkv"], bias=leaves.get("bias"), return_logits=bias is not None)
    targets = list(results) if isinstance(results, tuple) else [results]
    grads = [grad.cuda() for grad in (case.grad_out, grad_logits) if grad is not None]
    found = torch.autograd.grad(targets, list(leaves.values()), grads)
    case.check({f"grad_{name}": grad.cpu() for name, grad in zip(leaves, found, strict=True)})


@pytest.mark.parametrize("parameter_dtype", [torch.float32, None], ids=["float32", "same"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [1, 65, 192, 768, 1280, 1288, 4096])
def test_layer_norm_is_accurate(channels: int, dtype: torch.dtype, parameter_dtype: torch.dtype | None) -> None:
    x, residual, grad = (torch.randn(300, channels).to(dtype) for _ in range(3))
    weight, bias = (torch.randn(channels).to(parameter_dtype or dtype) for _ in range(2))

    def run(function: Callable[..., Tensor], *tensors: Tensor) -> list[Tensor]:
        leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
        y = function(*leaves)
        return [y.detach(), *torch.autograd.grad(y, leaves, grad.to(y))]

    summed = x + residual
    fused_sum, fused_y = ops.add_layer_norm(x.cuda(), residual.cuda(), weight.cuda(), bias.cuda())
    assert torch.equal(fused_sum.cpu(), summed)
    actual = run(ops.layer_norm, summed.cuda(), weight.cuda(), bias.cuda())
    assert torch.equal(actual[0], fused_y)
    exact = run(plain.layer_norm, *(tensor.double() for tensor in (summed, weight, bias)))
    same = run(plain.layer_norm, summed, weight, bias)
    for index, (one, torch_one, exact_one) in enumerate(zip(actual, same, exact, strict=True)):
        assert_as_accurate(one.cpu(), torch_one, exact_one, factor=BACKWARD_FACTOR if index else FORWARD_FACTOR)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [192, 1280, 4096])
def test_layer_norm_of_a_float32_stream(channels: int, dtype: torch.dtype) -> None:
    x, residual = torch.randn(300, channels, device="cuda").to(dtype), torch.randn(300, channels, device="cuda")
    weight, bias = torch.randn(channels, device="cuda"), torch.randn(channels, device="cuda")
    summed, y = ops.add_layer_norm(x, residual, weight, bias, out_dtype=dtype)
    assert torch.equal(summed, x + residual)
    assert torch.equal(y, ops.layer_norm(summed, weight, bias).to(dtype))
    assert torch.equal(y, ops.layer_norm(summed, weight, bias, out_dtype=dtype))


def test_layer_norm_of_float64_runs_on_torch() -> None:
    x = torch.randn(5, 64, dtype=torch.float64)
    torch.testing.assert_close(ops.layer_norm(x.cuda()).cpu(), ops.layer_norm(x))


def test_layer_norm_refuses_tensors_of_another_device() -> None:
    x, statistic, row = torch.randn(4, 64, device="cuda"), torch.ones(4, device="cuda"), torch.ones(64, device="cuda")
    operators = torch.ops.vitfast
    for weight, bias in ((row.cpu(), None), (row, row.cpu())):
        with pytest.raises(RuntimeError, match="another device"):
            operators.layer_norm_forward(x, weight, bias, 1e-5, None, None)
    for mean, rstd, weight in (
        (statistic.cpu(), statistic, row),
        (statistic, statistic.cpu(), row),
        (statistic, statistic, row.cpu()),
    ):
        with pytest.raises(RuntimeError, match="another device"):
            operators.layer_norm_backward(x, None, x, mean, rstd, weight, False)


def test_attention_passes_opcheck() -> None:
    qkv = torch.randn(2, 50, 3, 3, 64, device="cuda").half()
    torch.library.opcheck(torch.ops.vitfast.attention_packed_forward.default, (qkv, None, 0.125, True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("rounding", ROUNDING_CODES)
def test_quantize_float_gives_the_bits_of_the_cpu(dtype: torch.dtype, rounding: str) -> None:
    x = (torch.randn(3, 1001) * torch.logspace(-9, 9, 1001, 2.0)).to(dtype)
    seed = 7 if rounding == "stochastic" else None
    for format in (FloatFormat.fp16(), FloatFormat.fp8_e4m3fn(), FloatFormat.qtorch(5, 10)):
        for view in (x, x.T, x[:, 1:]):
            expected = ops.quantize_float(view, format, rounding=rounding, seed=seed)
            assert_same_bits(ops.quantize_float(view.cuda(), format, rounding=rounding, seed=seed).cpu(), expected)


def test_kernels_run_on_the_current_stream_and_in_a_graph() -> None:
    qkv = torch.randn(2, 197, 3, 3, 64, device="cuda").half()
    format = FloatFormat.fp8_e4m3fn()

    def work() -> Tensor:
        return ops.quantize_float(ops.attention_packed(qkv), format)

    work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()
    qkv.copy_(torch.randn_like(qkv))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(result, work())
