"""Specific to mlp: GELU variants, ragged sizes, and saved tensors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from support.accuracy import assert_same_bits
from support.operator_calls import OperatorCalls
from support.operators import FLOATS, OPERATORS
from support.sample import Make, Sample
from vitfast import ops
from vitfast.ops.library import has_kernel, kernel_states

MLP = next(operator for operator in OPERATORS if operator.name == "mlp")


def _gelu(x: Tensor, approximate: str) -> Tensor:
    """The operator with identity weights: GELU alone."""
    eye = torch.eye(x.shape[-1], dtype=x.dtype)
    return ops.mlp(x, eye, None, eye, None, approximate=approximate)


def _sample(name: str) -> Sample:
    return next(sample for sample in MLP.samples(Make()) if sample.name == name)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_gelu_is_erf_by_default(dtype: torch.dtype) -> None:
    x = torch.tensor([[-5.0, -1.0, -0.25, 0.0, 0.5, 1.0, 2.0, 6.0]], dtype=dtype)
    erf = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x[0].tolist()]
    tanh = [0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) for v in x[0].tolist()]
    # the two differ by 5e-4 at most: float32 tells them apart
    tolerance = {"atol": 4 * torch.finfo(dtype).eps, "rtol": 4 * torch.finfo(dtype).eps}
    torch.testing.assert_close(_gelu(x, "none")[0], torch.tensor(erf, dtype=dtype), **tolerance)
    torch.testing.assert_close(_gelu(x, "tanh")[0], torch.tensor(tanh, dtype=dtype), **tolerance)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_gelu_far_from_zero_is_zero_or_the_number_itself(dtype: torch.dtype, approximate: str) -> None:
    x = torch.tensor([[30.0, -30.0, 1e3, -1e3, 6e4, -6e4]], dtype=dtype, requires_grad=True)
    out = _gelu(x, approximate)
    expected = torch.where(x > 0, x, 0.0).detach()
    # erf's own tail at -30 is 1e-196; what an approximation leaves there is as far below any rounding
    torch.testing.assert_close(out.detach(), expected, atol=1e-20, rtol=0)
    out.sum().backward()
    torch.testing.assert_close(x.grad, (x > 0).to(dtype), atol=1e-20, rtol=0)


@pytest.mark.parametrize("name", ["vit_nano", "vit_tiny_tanh", "fc1_bias_only"])
def test_inference_equals_training(name: str) -> None:
    sample = _sample(name)
    without_grad = ops.mlp(**sample.arguments)
    assert_same_bits(ops.mlp(**sample.requires_grad().arguments).detach(), without_grad)
    with torch.no_grad():
        assert_same_bits(ops.mlp(**sample.requires_grad().arguments), without_grad)
    with torch.inference_mode():
        assert_same_bits(ops.mlp(**sample.arguments), without_grad)


def test_the_residual_passes_its_gradient_on() -> None:
    sample = _sample("vit_nano").requires_grad()
    grad = torch.randn(2, 17, 64)
    ops.mlp(**sample.arguments).backward(grad)
    assert_same_bits(sample.tensors["residual"].grad, grad)


def test_a_nan_spoils_its_own_row_only() -> None:
    sample = _sample("fc1_bias_only")
    expected = ops.mlp(**sample.arguments)
    x = sample.arguments["x"].clone()
    x[3, 7, 5] = torch.nan
    spoiled = ops.mlp(**sample.replace(x=x).arguments).isnan()
    assert spoiled[3, 7].all()
    assert int(spoiled.sum()) == expected.shape[-1]


# the autograd engine requires a GPU: only the forward can be traced without one
@pytest.mark.skipif(torch.version.cuda is None, reason="torch's CPU build ends the process at a CUDA tensor's graph")
@pytest.mark.skipif(not has_kernel("mlp", "meta"), reason="pure PyTorch: no raw operator")
@pytest.mark.parametrize(
    ("dtype", "hidden", "operators"),
    [
        (torch.bfloat16, 32, ["mlp_forward"]),
        (torch.float16, 32, ["mlp_forward"]),
        (torch.float32, 32, ["linear_forward", "linear_forward"]),
        (torch.bfloat16, 36, ["linear_forward", "linear_forward"]),
    ],
)
def test_cuda_runs_one_operator_if_the_kernels_support_the_call(
    dtype: torch.dtype, hidden: int, operators: list[str]
) -> None:
    states = {("linear", "cuda"): "vitfast", ("mlp", "cuda"): "vitfast"}
    shapes = {"x": (2, 5, 16), "w1": (hidden, 16), "b1": (hidden,), "w2": (24, hidden), "b2": (24,)}
    with kernel_states(states), FakeTensorMode(), OperatorCalls() as calls:
        leaves = {name: torch.empty(s, dtype=dtype, device="cuda", requires_grad=True) for name, s in shapes.items()}
        out = ops.mlp(*leaves.values())
        assert calls.names == operators
        assert out.shape == (2, 5, 24)
        assert out.requires_grad
        ops.mlp(*(leaf.detach() for leaf in leaves.values()))
        assert calls.names == 2 * operators


@pytest.mark.skipif(not has_kernel("mlp", "meta"), reason="pure PyTorch: no raw operator")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_saved_tensors(device: str) -> None:
    with FakeTensorMode():
        x, w1, w2 = (torch.empty(shape, device=device) for shape in ((2, 5, 16), (32, 16), (24, 32)))
        out, *saved = torch.ops.vitfast.mlp_forward.default(x, w1, None, w2, None, None, "none", True)
        assert [None if one is None else one.shape for one in saved] == [
            (2, 5, 32),
            (2, 5, 32) if device == "cuda" else None,
        ]
        grads = torch.ops.vitfast.mlp_backward.default(out, x, *saved, w1, w2, "none", True, False)
        assert [None if one is None else one.shape for one in grads] == [x.shape, w1.shape, (32,), w2.shape, None]
        assert torch.ops.vitfast.mlp_forward.default(x, w1, None, w2, None, None, "none", False)[1:] == (None, None)
