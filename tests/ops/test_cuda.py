"""The CUDA kernels as operators, on a GPU. Their arithmetic is tested without one, in tests/simt.

``VITFAST_CUDA_KERNELS=all`` makes them run before they are verified.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from support import plain
from support.accuracy import assert_rounded_alike, assert_same_bits, layer_norm_noise
from support.simt_attention import AttentionCase, dominant_case, negative_case, random_backward, random_case
from vitfast import ops
from vitfast.formats import FloatFormat
from vitfast.ops.attention import BACKWARD_LARGEST_BYTES, BACKWARD_SMALL_TOKENS
from vitfast.ops.library import has_kernel, has_shared_memory
from vitfast.ops.rounding import ROUNDING_CODES
from vitfast.ops.tolerance import BACKWARD_FACTOR, FORWARD_FACTOR, assert_as_accurate

pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def _needs_kernels() -> None:
    if not has_kernel("attention", "cuda"):
        pytest.skip("torch's operators run on this GPU: set VITFAST_CUDA_KERNELS=all")


def run(case: AttentionCase, *, return_logits: bool = True) -> dict[str, Tensor]:
    """The packed operator on the GPU, its results on the CPU. With few heads vitfast.ops would not call it."""
    qkv, bias = case.qkv.cuda(), None if case.bias is None else case.bias.cuda()
    scale = case.qkv.shape[-1] ** -0.5 if case.scale is None else case.scale
    out, lse, logits = torch.ops.vitfast.attention_packed_forward(qkv, bias, scale, return_logits)
    results = {"out": out.cpu(), "lse": lse.cpu()}
    return results if logits is None else {**results, "logits": logits.cpu()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [32, 40, 48, 64])
@pytest.mark.parametrize("tokens", [1, 16, 17, 50, 101, 145, 197, 200])
def test_attention_with_bias_and_logits_is_accurate(tokens: int, head_dim: int, dtype: torch.dtype) -> None:
    case = random_case(5, 3, tokens, head_dim, dtype, bias=torch.randn(1, 3, tokens, tokens).to(dtype))
    case.check(run(case))


# of 9.0's own kernel, which the emulation does not run: instances end at 56, 104, 152 and 200 tokens, tiles at 64
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [8, 32, 40, 64])
@pytest.mark.parametrize("tokens", [1, 8, 17, 50, 56, 57, 64, 65, 101, 104, 105, 128, 129, 152, 153, 192, 197, 200])
def test_attention_without_bias_is_accurate(tokens: int, head_dim: int, dtype: torch.dtype) -> None:
    for case in (
        random_case(5, 3, tokens, head_dim, dtype),
        negative_case(tokens, head_dim, dtype),
        dominant_case(tokens, head_dim, dtype),
    ):
        case.check(run(case, return_logits=False))


@pytest.mark.parametrize("scale", [0.0, -0.3, 1.0])
def test_attention_takes_any_scale(scale: float) -> None:
    case = random_case(2, 3, 197, 64, scale=scale)
    case.check(run(case, return_logits=False))


@pytest.mark.parametrize("tokens", [50, 101, 145, 197])
def test_blocks_that_share_a_head_change_no_bit(tokens: int) -> None:
    qkv = torch.randn(4, tokens, 3, 3, 64, device="cuda").half()
    out, lse, _ = torch.ops.vitfast.attention_packed_forward(qkv, None, 0.125, False)
    for copies in (53, 75, 150):  # 636, 900 and 1,800 heads: at 197 tokens 3, 2 and 1 blocks each on an H100, above 4
        results = torch.ops.vitfast.attention_packed_forward(qkv.repeat(copies, 1, 1, 1, 1), None, 0.125, False)
        assert torch.equal(results[0], out.repeat(copies, 1, 1, 1))
        assert torch.equal(results[1], lse.repeat(copies, 1, 1))


def test_a_nan_spoils_its_own_rows_only() -> None:
    case = random_case(2, 1, 197, 64)
    case.qkv[1, 3, 0, 0, 5] = torch.nan  # in a query
    out = run(case, return_logits=False)["out"]
    assert out[1, 3].isnan().all()
    out[1, 3] = 0.0
    assert out.isfinite().all()


@pytest.mark.parametrize(
    ("tokens", "head_dim", "dtype", "message"),
    [
        (201, 64, torch.float16, r"up to (200|112) tokens"),
        (50, 72, torch.float16, "head dimensions up to 64"),
        (50, 12, torch.float16, "multiples of 8"),
        (50, 64, torch.float32, "takes float16 and bfloat16 only"),
    ],
)
def test_other_sizes_and_types_are_refused(tokens: int, head_dim: int, dtype: torch.dtype, message: str) -> None:
    qkv = torch.zeros(1, tokens, 3, 1, head_dim, device="cuda", dtype=dtype)
    out, lse = qkv.new_zeros(1, tokens, 1, head_dim), torch.zeros(1, 1, tokens, device="cuda")
    for return_logits in (False, True):
        with pytest.raises(RuntimeError, match=message):
            torch.ops.vitfast.attention_packed_forward(qkv, None, 1.0, return_logits)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.vitfast.attention_packed_backward(out, None, qkv, None, out, lse, 1.0, False)


def test_attention_equals_the_emulation_but_for_the_order_of_sums() -> None:
    case = random_case(2, 3, 197, 64)
    torch.testing.assert_close(run(case)["out"], case.run()["out"], rtol=2e-3, atol=2e-4)


def test_attention_reads_any_strides() -> None:
    qkv = torch.randn(2, 50, 3, 3, 64, device="cuda").half()
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    expected = ops.attention(q.contiguous(), k.contiguous(), v.contiguous())
    # from an address that is no multiple of 16 bytes
    shifted = torch.empty(q.numel() + 1, device="cuda").half()[1:].view(q.shape).copy_(q)
    for other in (q, shifted, q.transpose(-1, -2).contiguous().transpose(-1, -2)):
        assert torch.equal(ops.attention(other, k, v), expected)


@pytest.mark.parametrize("shape", [(0, 50, 3, 3, 64), (2, 0, 3, 3, 64), (2, 50, 3, 0, 64)])
def test_attention_takes_empty_tensors(shape: tuple[int, ...]) -> None:
    assert ops.attention_packed(torch.empty(shape, device="cuda").half()).numel() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bias_batch", [0, 1, 5])
@pytest.mark.parametrize(("tokens", "head_dim"), [(2, 64), (50, 32), (101, 48), (112, 64), (197, 64), (200, 64)])
def test_gradients_of_attention_are_accurate(tokens: int, head_dim: int, bias_batch: int, dtype: torch.dtype) -> None:
    if tokens > BACKWARD_SMALL_TOKENS and not has_shared_memory(torch.device("cuda"), BACKWARD_LARGEST_BYTES):
        pytest.skip("the blocks of this GPU have too little shared memory")
    bias = torch.randn(bias_batch, 3, tokens, tokens).to(dtype) if bias_batch else None
    grad_logits = torch.randn(5, 3, tokens, tokens).to(dtype) if bias_batch else None
    case = random_backward(5, 3, tokens, head_dim, dtype, bias=bias, grad_logits=grad_logits)
    leaves = {"qkv": case.qkv.cuda().requires_grad_()}
    if bias is not None:
        leaves["bias"] = bias.cuda().requires_grad_()
    out, _, logits = torch.ops.vitfast.attention_packed_forward(
        leaves["qkv"], leaves.get("bias"), head_dim**-0.5, bias is not None
    )
    targets = [out] if logits is None else [out, logits]
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
    assert torch.equal(y, ops.layer_norm(summed, weight, bias, out_dtype=dtype))
    # for a float32 result, a lane sums packs of four elements instead of eight; the last bits of the statistics differ
    expected = ops.layer_norm(summed, weight, bias).to(dtype)
    info, noise = torch.finfo(dtype), layer_norm_noise(summed, weight, bias)
    assert_rounded_alike(y, expected, info.eps, info.smallest_normal, noise)


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
