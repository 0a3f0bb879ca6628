"""The product with a rounded accumulator: bit by bit that of its loop."""

from __future__ import annotations

import pytest
import torch

from support import accumulate_oracle
from support.accuracy import assert_same_bits
from support.samples import FORMATS
from vitfast.ops import matmul_accumulate, quantize_float, reference
from vitfast.ops.matmul_accumulate import _StraightThrough

CHUNKS = (1, 4, 8, 16, None)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("format", ["fp16", "bf16", "fp8_e4m3fn", "ieee(3,0)", "qtorch(5,10)", "tf32"])
def test_equals_the_loop_in_exact_fractions(format: str, chunk: int | None) -> None:
    rounding = "nearest_away" if format.startswith("qtorch") else "nearest_even"
    x, w = torch.randn(2, 2, 21), torch.randn(5, 21)
    expected = accumulate_oracle.matmul_accumulate(x, w, FORMATS[format], chunk, rounding)
    assert_same_bits(matmul_accumulate(x, w, FORMATS[format], chunk, rounding=rounding), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("chunk", CHUNKS)
def test_what_overflows_underflows_or_is_not_finite(chunk: int | None) -> None:
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


def test_what_runs_without_the_compiled_library_gives_the_same() -> None:
    leaves = [torch.randn(3, 20, requires_grad=True), torch.randn(4, 20, requires_grad=True)]
    out = matmul_accumulate(*leaves, FORMATS["fp16"], 4)
    plain = _StraightThrough.apply(*leaves, FORMATS["fp16"], 4, "nearest_even")
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
