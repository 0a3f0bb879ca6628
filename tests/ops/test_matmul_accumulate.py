"""The GEMM with a rounded accumulator is bit-identical to its defining loop."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from support import accumulate_oracle
from support.accuracy import assert_same_bits
from support.fp16_accumulation import HOPPER
from support.samples import FORMATS
from vitfast.formats import FloatFormat
from vitfast.ops import matmul_accumulate, quantize_float, reference
from vitfast.ops.library import chosen_kernels, has_kernel, kernel_states
from vitfast.ops.matmul_accumulate import _Fp16Accumulation

CHUNKS = (1, 4, 8, 16, None)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("format", ["fp16", "bf16", "fp8_e4m3fn", "ieee(3,0)", "qtorch(5,10)", "tf32"])
def test_equals_the_loop_in_exact_fractions(format: str, chunk: int | None) -> None:
    rounding = "nearest_away" if format.startswith("qtorch") else "nearest_even"
    x, w = torch.randn(2, 2, 21), torch.randn(5, 21)
    expected = accumulate_oracle.matmul_accumulate(x, w, FORMATS[format], chunk, rounding)
    assert_same_bits(matmul_accumulate(x, w, FORMATS[format], chunk, rounding=rounding), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("chunk", CHUNKS)
def test_overflow_underflow_and_non_finite_values(chunk: int | None) -> None:
    x = torch.tensor(
        [
            [3e4, 3e4, 3e4, -3e4, 1.0],
            [1e-30, 1e-30, -1e-30, 1e-45, 0.0],
            [torch.inf, 1.0, 1.0, 1.0, 1.0],
            [torch.nan, 1.0, 1.0, 1.0, 1.0],
            [-0.0, -0.0, 0.0, -0.0, -0.0],
            [1.0, 2.0**-11, 2.0**-11, -1.0, 2.0**-24],
        ]
    )
    w = torch.cat([torch.ones(1, 5), x, -x])
    for format in ("fp16", "fp8_e4m3fn", "bf16"):
        expected = accumulate_oracle.matmul_accumulate(x, w, FORMATS[format], chunk)
        assert_same_bits(matmul_accumulate(x, w, FORMATS[format], chunk), expected)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 33, 65), (197, 192, 40), (200, 31, 97), (193, 64, 32)], ids=str)
def test_every_tile_and_tail(shape: tuple[int, int, int], chunk: int | None) -> None:
    rows, depth, columns = shape
    x, w = torch.randn(rows, depth), torch.randn(columns, depth)
    for name, rounding in (("fp16", "nearest_even"), ("bf16", "toward_zero"), ("fp8_e5m2", "nearest_even")):
        expected = reference.matmul_accumulate(x, w, FORMATS[name], chunk, rounding)  # type: ignore[arg-type]
        assert_same_bits(matmul_accumulate(x, w, FORMATS[name], chunk, rounding=rounding), expected)  # type: ignore[arg-type]


def test_the_reference_multiplies_and_adds_with_one_rounding() -> None:
    a, b = torch.randn(300), torch.randn(300)
    c = -(a * b) * (1 + torch.randint(-2, 3, (300,)) * 2.0**-23)  # almost cancels: the product's lost bits show
    scale = 2.0 ** torch.randint(-80, 40, (300,))
    for factor in (torch.ones(300), scale):
        a_scaled, c_scaled = a * factor, c * factor
        expected = [
            accumulate_oracle.fused_multiply_add(*triple)
            for triple in zip(a_scaled.tolist(), b.tolist(), c_scaled.tolist(), strict=True)
        ]
        assert_same_bits(reference.fused_multiply_add(a_scaled, b, c_scaled), torch.tensor(expected))


def test_a_chunk_of_the_whole_is_none() -> None:
    x, w = torch.randn(9, 50), torch.randn(8, 50)
    whole = matmul_accumulate(x, w, FORMATS["fp16"])
    assert_same_bits(matmul_accumulate(x, w, FORMATS["fp16"], 50), whole)
    assert_same_bits(matmul_accumulate(x, w, FORMATS["fp16"], 1000), whole)
    assert not torch.equal(matmul_accumulate(x, w, FORMATS["fp16"], 1), whole)


def test_operands_are_rounded_first_and_let_gradients_through() -> None:
    format = FORMATS["fp16"]
    x, w = torch.randn(9, 50, requires_grad=True), torch.randn(8, 50, requires_grad=True)
    rounded_x, rounded_w = quantize_float(x.detach(), format), quantize_float(w.detach(), format)
    out = matmul_accumulate(x, w, format, 4, operands=format)
    assert_same_bits(out.detach(), matmul_accumulate(rounded_x, rounded_w, format, 4))
    grad = torch.randn(9, 8)
    out.backward(grad)
    torch.testing.assert_close(x.grad, grad @ rounded_w)
    torch.testing.assert_close(w.grad, grad.t() @ rounded_x)


@pytest.mark.parametrize("shape", [(0, 8, 4), (3, 0, 4), (3, 8, 0)], ids=str)
def test_empty_sizes(shape: tuple[int, int, int]) -> None:
    rows, depth, columns = shape
    x, w = torch.randn(rows, depth, requires_grad=True), torch.randn(columns, depth, requires_grad=True)
    for chunk in CHUNKS:
        out = matmul_accumulate(x, w, FORMATS["fp16"], chunk)
        assert torch.equal(out, torch.zeros(rows, columns))
        out.sum().backward()


def test_pure_pytorch_gives_the_same_bits() -> None:
    leaves = [torch.randn(3, 20, requires_grad=True), torch.randn(4, 20, requires_grad=True)]
    out = matmul_accumulate(*leaves, FORMATS["fp16"], 4)
    with chosen_kernels("torch", "cpu"):
        plain = matmul_accumulate(*leaves, FORMATS["fp16"], 4)
    assert_same_bits(out.detach(), plain.detach())
    grad = torch.randn(3, 4)
    for own, other in zip(
        torch.autograd.grad(out, leaves, grad), torch.autograd.grad(plain, leaves, grad), strict=True
    ):
        assert torch.equal(own, other)


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"chunk": 0}, "chunk"),
        ({"chunk": 2.0}, "chunk"),
        ({"chunk": True}, "chunk"),
        ({"rounding": "stochastic"}, "rounding"),
    ],
)
def test_options_that_are_refused(options: dict[str, object], argument: str) -> None:
    with pytest.raises((TypeError, ValueError), match=argument):
        matmul_accumulate(torch.ones(2, 3), torch.ones(2, 3), FORMATS["fp16"], **options)  # type: ignore[arg-type]


# --- on tensor cores ---

FLOAT32 = FloatFormat.ieee(8, 23)
needs_schema = pytest.mark.skipif(not has_kernel("matmul_accumulate", "meta"), reason="pure PyTorch: no raw operator")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": "tensor cores"}, "unit must be"),
        ({"accumulator": FORMATS["bf16"]}, "accumulator with unit='tensor_core'"),
        ({"accumulator": FORMATS["qtorch(5,10)"]}, "accumulator with unit='tensor_core'"),
        ({"rounding": "toward_zero"}, "rounding with unit='tensor_core'"),
        ({"chunk": 24}, "chunk with unit='tensor_core' must be a multiple of 16"),
        ({}, "unit='tensor_core' needs x and w on a CUDA device, got cpu"),
    ],
)
def test_unsupported_tensor_core_arguments_are_rejected(options: dict[str, object], message: str) -> None:
    arguments = {"accumulator": FLOAT32, "unit": "tensor_core", **options}
    with pytest.raises(ValueError, match=message):
        matmul_accumulate(torch.ones(2, 32), torch.ones(2, 32), **arguments)  # type: ignore[arg-type]


@needs_schema
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_tensor_core_kernel_must_be_active(dtype: torch.dtype) -> None:
    key = "matmul_fp16_accumulation", "cuda"
    with FakeTensorMode():
        x, w = torch.empty(2, 3, 20, dtype=dtype, device="cuda"), torch.empty(5, 20, dtype=dtype, device="cuda")
        with (
            kernel_states({key: "torch: for this test"}),
            pytest.raises(RuntimeError, match="no fallback is bit-exact: for this test"),
        ):
            matmul_accumulate(x, w, FLOAT32, 16, unit="tensor_core")
        with kernel_states({key: "vitfast"}):
            out = matmul_accumulate(x, w, FLOAT32, 16, unit="tensor_core")
        assert (out.shape, out.dtype, out.device.type) == ((2, 3, 5), dtype, "cuda")


@pytest.fixture
def modelled() -> Iterator[None]:
    """A CPU that has a tensor core."""

    def kernel(x: Tensor, w: Tensor, rounds: bool, chunk: int) -> Tensor:
        assert x.shape[-1] % 8 == 0
        return HOPPER.product(x, w, chunk or max(x.shape[-1], 16), rounds=rounds)

    library = torch.library.Library("vitfast", "IMPL")
    library.impl("matmul_fp16_accumulation", kernel, "CPU")
    yield
    library._destroy()


@needs_schema
@pytest.mark.usefixtures("modelled")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("depth", [0, 20, 64])
def test_around_tensor_cores_operands_are_float16_and_gradients_float32(depth: int, dtype: torch.dtype) -> None:
    x, w = (torch.randn(rows, depth).to(dtype).requires_grad_() for rows in (3, 5))
    out = _Fp16Accumulation.apply(x, w, True, 16)
    x16, w16 = x.detach().half(), w.detach().half()
    assert_same_bits(out.detach(), HOPPER.product(x16, w16, 16, rounds=True))
    grad = torch.full((3, 5), 1e6)  # beyond float16
    out.backward(grad)
    assert_same_bits(x.grad, (grad @ w16.float()).to(dtype))
    assert_same_bits(w.grad, (grad.t() @ x16.float()).to(dtype))
