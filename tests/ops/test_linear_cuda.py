"""The products with a fused epilogue, on a GPU. What follows a sum is tested without one, in tests/simt.

``VITFAST_CUDA_KERNELS=all`` makes them run before a committed result proves them.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from support import plain
from support.tolerance import BACKWARD_FACTOR, FORWARD_FACTOR, assert_as_accurate
from vitfast import ops
from vitfast.ops.library import has_kernel
from vitfast.quantization import FloatFormat

pytestmark = pytest.mark.cuda

FORMATS = [FloatFormat.fp8_e4m3fn(), FloatFormat.fp4_e2m1(), FloatFormat.qtorch(5, 10)]
TYPES = [torch.float16, torch.bfloat16]
# (rows, K, N): ViT-Ti, S, B and L at 197 tokens, where one tile of rows is cut; tails of every dimension; one of each
SHAPES = [
    (394, 192, 576),
    (394, 192, 768),
    (394, 768, 192),
    (197, 384, 1152),
    (197, 1536, 384),
    (197, 768, 3072),
    (50, 1024, 4096),
    (129, 200, 264),
    (1, 8, 8),
    (3, 72, 1000),
]
PARTS = ["", "bias", "bias gelu", "bias gelu_tanh", "bias residual", "bias scale residual", "bias gelu scale residual"]


@pytest.fixture(autouse=True)
def _needs_kernels() -> None:
    if not has_kernel("linear", "cuda"):
        pytest.skip("torch's operators run on this GPU: set VITFAST_CUDA_KERNELS=all")


def arguments_of(shape: tuple[int, int, int], parts: str, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of linear on the CPU."""
    rows, depth, columns = shape
    named = parts.split()
    return {
        "x": torch.randn(rows, depth).to(dtype),
        "weight": (torch.randn(columns, depth) * depth**-0.5).to(dtype),
        "bias": torch.randn(columns).to(dtype) if "bias" in named else None,
        "activation": next((name for name in ("gelu", "gelu_tanh") if name in named), "none"),
        "scale": torch.randn(columns).to(dtype) if "scale" in named else None,
        "residual": torch.randn(rows, columns).to(dtype) if "residual" in named else None,
    }


def moved(arguments: dict[str, Any], **where: Any) -> dict[str, Any]:
    """The arguments with their tensors elsewhere, or of another type."""
    return {name: value.to(**where) if isinstance(value, Tensor) else value for name, value in arguments.items()}


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear_is_accurate(shape: tuple[int, int, int], parts: str, dtype: torch.dtype) -> None:
    arguments = arguments_of(shape, parts, dtype)
    exact = plain.linear(**moved(arguments, dtype=torch.float64))
    out = ops.linear(**moved(arguments, device="cuda")).cpu()
    assert_as_accurate(out, plain.linear(**arguments), exact, factor=FORWARD_FACTOR)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("parts", PARTS)
def test_gradients_of_linear_are_accurate(parts: str, dtype: torch.dtype) -> None:
    arguments = arguments_of((394, 192, 576), parts, dtype)
    names = [name for name, value in arguments.items() if isinstance(value, Tensor)]
    grad = torch.randn(394, 576).to(dtype)

    def gradients(function: Any, **where: Any) -> tuple[Tensor, ...]:
        leaves = moved(arguments, **where)
        leaves |= {name: leaves[name].detach().requires_grad_() for name in names}
        return torch.autograd.grad(function(**leaves), [leaves[name] for name in names], grad.to(**where))

    exact, same = gradients(plain.linear, dtype=torch.float64), gradients(plain.linear, device="cpu")
    for name, one, torch_one, exact_one in zip(names, gradients(ops.linear, device="cuda"), same, exact, strict=True):
        assert_as_accurate(one.cpu(), torch_one, exact_one, factor=BACKWARD_FACTOR, name=f"grad_{name}")


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_rounding_in_the_product_is_rounding_behind_it(format: FloatFormat, dtype: torch.dtype) -> None:
    arguments = moved(arguments_of((129, 200, 264), "bias gelu residual", dtype), device="cuda")
    assert torch.equal(ops.linear(**arguments, format=format), ops.quantize_float(ops.linear(**arguments), format))


@pytest.mark.parametrize("shape", [(5, 12, 16), (5, 16, 12), (0, 16, 16), (5, 16, 0)], ids=str)
def test_other_shapes_and_types_run_on_torch(shape: tuple[int, int, int]) -> None:
    for dtype in (torch.float16, torch.float32):
        arguments = moved(arguments_of(shape, "bias gelu residual", dtype), device="cuda")
        torch.testing.assert_close(ops.linear(**arguments), plain.linear(**arguments))


def test_linear_reads_any_strides_and_addresses() -> None:
    arguments = moved(arguments_of((129, 192, 264), "bias residual", torch.float16), device="cuda")
    expected = ops.linear(**arguments)
    for name, value in list(arguments.items()):
        if isinstance(value, Tensor):
            shifted = torch.empty(value.numel() + 1, device="cuda").half()[1:].view(value.shape).copy_(value)
            assert torch.equal(ops.linear(**{**arguments, name: shifted}), expected)
            if value.dim() > 1:
                assert torch.equal(ops.linear(**{**arguments, name: value.mT.contiguous().mT}), expected)


def test_linear_runs_in_a_graph_and_gives_the_same_bits_each_time() -> None:
    arguments = moved(arguments_of((394, 192, 768), "bias gelu", torch.bfloat16), device="cuda")
    first = ops.linear(**arguments)
    assert torch.equal(ops.linear(**arguments), first)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = ops.linear(**arguments)
    arguments["x"].copy_(torch.randn_like(arguments["x"]))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(result, ops.linear(**arguments))


def test_mlp_composes_two_of_them() -> None:
    x, residual = (torch.randn(394, 192).half() for _ in range(2))
    w1, w2 = (torch.randn(768, 192) * 192**-0.5).half(), (torch.randn(192, 768) * 768**-0.5).half()
    b1, b2 = torch.randn(768).half(), torch.randn(192).half()
    on_cpu = (x, w1, b1, w2, b2)
    out = ops.mlp(*(tensor.cuda() for tensor in on_cpu), residual=residual.cuda()).cpu()
    exact = plain.mlp(*(tensor.double() for tensor in on_cpu), residual=residual.double())
    assert_as_accurate(out, plain.mlp(*on_cpu, residual=residual), exact, factor=FORWARD_FACTOR)


def test_linear_passes_opcheck() -> None:
    arguments = moved(arguments_of((17, 64, 128), "bias gelu residual", torch.float16), device="cuda")
    parts = [arguments[name] for name in ("x", "weight", "bias", "activation", "scale", "residual")]
    torch.library.opcheck(torch.ops.vitfast.linear_forward.default, (*parts, [], True))
