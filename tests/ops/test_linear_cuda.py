"""GEMMs with a fused epilogue, on a GPU. The epilogue is also tested without a GPU, in tests/simt.

``VITFAST_CUDA_KERNELS=all`` makes them run before they are verified.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from support import plain
from vitfast import ops
from vitfast.formats import FloatFormat
from vitfast.ops.library import has_kernel
from vitfast.ops.tolerance import BACKWARD_FACTOR, FORWARD_FACTOR, assert_as_accurate

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
def test_rounding_in_the_gemm_equals_rounding_after_it(format: FloatFormat, dtype: torch.dtype) -> None:
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


# (rows, C, F): ViT-Ti and S; rows, channels and hidden units that fill no tile; one cluster half empty; one of each
MLP_SHAPES = [(394, 192, 768), (394, 384, 1536), (129, 72, 264), (300, 64, 1000), (1, 8, 8)]


def mlp_arguments(rows: int, channels: int, hidden: int, dtype: torch.dtype, *, biases: bool = True) -> dict[str, Any]:
    """Arguments of mlp on the CPU; hidden units are spread over both sides of zero."""

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape) * scale).to(dtype)

    return {
        "x": normal(rows, channels),
        "fc1_weight": normal(hidden, channels, scale=1.5 * channels**-0.5),
        "fc1_bias": normal(hidden, scale=0.5) if biases else None,
        "fc2_weight": normal(channels, hidden, scale=hidden**-0.5),
        "fc2_bias": normal(channels, scale=0.5) if biases else None,
        "residual": normal(rows, channels),
    }


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("shape", MLP_SHAPES, ids=str)
def test_mlp_is_accurate(shape: tuple[int, int, int], approximate: str, dtype: torch.dtype) -> None:
    arguments = mlp_arguments(*shape, dtype) | {"approximate": approximate}
    exact = plain.mlp(**moved(arguments, dtype=torch.float64))
    out = ops.mlp(**moved(arguments, device="cuda")).cpu()
    assert_as_accurate(out, plain.mlp(**arguments), exact, factor=FORWARD_FACTOR)


def mlp_gradients(function: Any, arguments: dict[str, Any], grad: Tensor, **where: Any) -> dict[str, Tensor]:
    """The gradient of each tensor among the arguments; ``where``: a device or a type."""
    moved_arguments = moved(arguments, **where)
    leaves = {name: value for name, value in moved_arguments.items() if isinstance(value, Tensor)}
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
    out = function(**(moved_arguments | leaves))
    return dict(zip(leaves, torch.autograd.grad(out, list(leaves.values()), grad.to(**where)), strict=True))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("shape", MLP_SHAPES, ids=str)
def test_gradients_of_mlp_are_accurate(shape: tuple[int, int, int], approximate: str, dtype: torch.dtype) -> None:
    arguments = mlp_arguments(*shape, dtype) | {"approximate": approximate}
    grad = torch.randn(shape[0], shape[1]).to(dtype)
    exact = mlp_gradients(plain.mlp, arguments, grad, dtype=torch.float64)
    same = mlp_gradients(plain.mlp, arguments, grad, device="cpu")
    for name, one in mlp_gradients(ops.mlp, arguments, grad, device="cuda").items():
        assert_as_accurate(one.cpu(), same[name], exact[name], factor=BACKWARD_FACTOR, name=f"grad_{name}")


def test_gradients_of_mlp_without_biases_and_of_any_strides() -> None:
    arguments = mlp_arguments(129, 64, 256, torch.bfloat16, biases=False)
    grad = torch.randn(64, 129).bfloat16()
    expected = mlp_gradients(ops.mlp, arguments, grad.T.contiguous(), device="cuda")
    found = mlp_gradients(ops.mlp, arguments, grad.T, device="cuda")
    assert set(found) == {"x", "fc1_weight", "fc2_weight", "residual"}
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("parts", ["bias", "bias gelu", "bias gelu scale residual"])
def test_gradients_have_the_same_bits_each_time(parts: str) -> None:
    arguments = moved(arguments_of((50 * 197, 384, 1536), parts, torch.bfloat16), device="cuda")
    names = [name for name, value in arguments.items() if isinstance(value, Tensor)]
    leaves = arguments | {name: arguments[name].requires_grad_() for name in names}
    out = ops.linear(**leaves)
    grad = torch.randn_like(out)
    runs = [torch.autograd.grad(out, [leaves[name] for name in names], grad, retain_graph=True) for _ in range(3)]
    assert all(torch.equal(one, first) for run in runs for one, first in zip(run, runs[0], strict=True))


def test_gradients_of_mlp_have_the_same_bits_each_time() -> None:
    arguments = mlp_arguments(50 * 197, 384, 1536, torch.bfloat16)
    grad = torch.randn(50 * 197, 384).bfloat16()
    runs = [mlp_gradients(ops.mlp, arguments, grad, device="cuda") for _ in range(3)]
    assert all(torch.equal(run[name], runs[0][name]) for run in runs for name in run)


@pytest.mark.parametrize("save_for_backward", [False, True])
def test_mlp_passes_opcheck(save_for_backward: bool) -> None:
    arguments = moved(mlp_arguments(17, 64, 128, torch.float16), device="cuda")
    torch.library.opcheck(torch.ops.vitfast.mlp_forward.default, (*arguments.values(), "none", save_for_backward))


def test_linear_passes_opcheck() -> None:
    arguments = moved(arguments_of((17, 64, 128), "bias gelu residual", torch.float16), device="cuda")
    parts = [arguments[name] for name in ("x", "weight", "bias", "activation", "scale", "residual")]
    torch.library.opcheck(torch.ops.vitfast.linear_forward.default, (*parts, None, True))
