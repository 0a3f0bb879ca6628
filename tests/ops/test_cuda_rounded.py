"""The CUDA operators with fused rounding, on a GPU: bit-identical to the CPU operators.

``VITFAST_CUDA_KERNELS=all`` makes them run before they are verified.
"""

from __future__ import annotations

import pytest
import torch

from support.accuracy import assert_rounded_alike, assert_same_bits, layer_norm_noise
from support.fp16_accumulation import documented_model
from vitfast import ops
from vitfast.formats import FloatFormat
from vitfast.ops.library import has_kernel
from vitfast.quantization.rounders import FloatRounder

pytestmark = pytest.mark.cuda

FP16 = FloatRounder(FloatFormat.fp16())


@pytest.fixture(autouse=True)
def _needs_kernels() -> None:
    if not has_kernel("matmul_accumulate", "cuda"):
        pytest.skip("torch's operators run on this GPU: set VITFAST_CUDA_KERNELS=all")


@pytest.mark.parametrize("rounder", [FP16, FloatRounder(FloatFormat.fp8_e5m2(), "toward_zero")], ids=["fp16", "fp8"])
@pytest.mark.parametrize("channels", [65, 192, 768, 1280, 4096])
def test_layer_norm_rounds_as_the_cpu(channels: int, rounder: FloatRounder) -> None:
    x, residual = torch.randn(300, channels), torch.randn(300, channels)
    weight, bias = torch.randn(channels), torch.randn(channels)
    roundings = {"round_sum": rounder, "round_operand": rounder, "round_result": rounder}
    summed, y = ops.add_layer_norm(x, residual, weight, bias, **roundings)
    cuda_summed, cuda_y = ops.add_layer_norm(*(t.cuda() for t in (x, residual, weight, bias)), **roundings)
    assert_same_bits(cuda_summed.cpu(), summed)
    # statistics that differ in their last bits move a few results to their neighbours; where weight and bias cancel,
    # the difference exceeds the result's spacing
    spacing, noise = 2.0**-rounder.format.mantissa_bits, layer_norm_noise(summed, weight, bias)
    assert_rounded_alike(cuda_y.cpu(), y, spacing, rounder.format.min_normal, noise)


def test_gradients_pass_straight_through_the_roundings_of_layer_norm() -> None:
    tensors = [torch.randn(shape) for shape in ((50, 192), (50, 192), (192,), (192,))]
    # given, not computed from y, of which a few elements differ by one rounding
    output_gradients = [torch.randn(50, 192), torch.randn(50, 192)]

    def gradients(device: str) -> list[torch.Tensor]:
        leaves = [tensor.to(device, copy=True).requires_grad_() for tensor in tensors]
        outputs = ops.add_layer_norm(*leaves, round_sum=FP16, round_operand=FP16, round_result=FP16)
        found = torch.autograd.grad(outputs, leaves, [grad.to(device) for grad in output_gradients])
        return [grad.cpu() for grad in found]

    for actual, expected in zip(gradients("cuda"), gradients("cpu"), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rounding", ["nearest_even", "nearest_away", "toward_zero", "qtorch"])
@pytest.mark.parametrize("chunk", [1, 4, 8, 16, None])
def test_matmul_accumulate_gives_the_bits_of_the_cpu(chunk: int | None, rounding: str) -> None:
    formats = [FloatFormat.qtorch(5, 10)] if rounding == "qtorch" else [FloatFormat.fp16(), FloatFormat.fp8_e4m3fn()]
    for rows, columns, depth in ((1, 1, 1), (197, 192, 768), (65, 1000, 191)):
        x, w = torch.randn(2, rows, depth), torch.randn(columns, depth)
        for format in formats:
            options = {"rounding": rounding, "chunk": chunk}
            expected = ops.matmul_accumulate(x, w, format, **options)  # type: ignore[arg-type]
            actual = ops.matmul_accumulate(x.cuda(), w.cuda(), format, **options)  # type: ignore[arg-type]
            assert_same_bits(actual.cpu(), expected)


def test_matmul_accumulate_passes_opcheck() -> None:
    x, w = torch.randn(3, 40, device="cuda", requires_grad=True), torch.randn(5, 40, device="cuda", requires_grad=True)
    torch.library.opcheck(torch.ops.vitfast.matmul_accumulate.default, (x, w, FP16.raw, 8))


@pytest.mark.parametrize("accumulator", [FloatFormat.ieee(8, 23), FloatFormat.fp16()], ids=["float32", "fp16"])
@pytest.mark.parametrize("chunk", [16, 64, None])
def test_tensor_cores_give_the_bits_of_their_model(chunk: int | None, accumulator: FloatFormat) -> None:
    for rows, columns, depth in ((1, 1, 1), (197, 192, 768), (65, 1001, 588)):
        x, w = torch.randn(2, rows, depth, device="cuda"), torch.randn(columns, depth, device="cuda")
        actual = ops.matmul_accumulate(x, w, accumulator, chunk, unit="tensor_core")
        whole_steps = chunk or (depth + 15) // 16 * 16
        rounds = accumulator.mantissa_bits == 10
        model = documented_model("cuda")
        expected = model.product(x.flatten(0, 1).half(), w.half(), whole_steps, rounds=rounds)
        assert_same_bits(actual.flatten(0, 1), expected)


def test_layout_and_alignment_do_not_change_tensor_core_results() -> None:
    x, w = torch.randn(50, 136, device="cuda").half(), torch.randn(70, 136, device="cuda").half()
    options = {"accumulator": FloatFormat.ieee(8, 23), "chunk": 32, "unit": "tensor_core"}
    expected = ops.matmul_accumulate(x, w, **options)  # type: ignore[arg-type]
    shifted = torch.empty(x.numel() + 1, device="cuda").half()[1:].view(x.shape).copy_(x)
    for view in (shifted, x.t().contiguous().t()):
        assert torch.equal(ops.matmul_accumulate(view, w, **options), expected)  # type: ignore[arg-type]
    compiled = torch.compile(ops.matmul_accumulate, fullgraph=True)
    assert torch.equal(compiled(x, w, **options), expected)


def test_tensor_cores_pass_opcheck_and_gradients() -> None:
    x, w = torch.randn(3, 40, device="cuda"), torch.randn(5, 40, device="cuda")
    torch.library.opcheck(torch.ops.vitfast.matmul_fp16_accumulation.default, (x.half(), w.half(), True, 16))
    leaves = [x.requires_grad_(), w.requires_grad_()]
    out = ops.matmul_accumulate(*leaves, FloatFormat.fp16(), 16, unit="tensor_core")
    grads = torch.autograd.grad(out.sum(), leaves)
    torch.testing.assert_close(grads[0], w.half().float().sum(0).expand(3, 40))
    torch.testing.assert_close(grads[1], x.half().float().sum(0).expand(5, 40))
