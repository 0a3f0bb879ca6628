"""What is particular to the mlp: its GELUs, its tails, and what it saves."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from support.accuracy import assert_same_bits
from support.operators import FLOATS, OPERATORS
from support.sample import Make, Sample
from vitfast import ops

MLP = next(operator for operator in OPERATORS if operator.name == "mlp")


def _gelu(x: Tensor, approximate: str) -> Tensor:
    """The operator with identity weights: GELU alone."""
    eye = torch.eye(x.shape[-1], dtype=x.dtype)
    return ops.mlp(x, eye, None, eye, None, approximate=approximate)


def _sample(name: str) -> Sample:
    return next(sample for sample in MLP.samples(Make()) if sample.name == name)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_gelu_is_erf_unless_tanh_is_asked_for(dtype: torch.dtype) -> None:
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
def test_inference_gives_what_training_gives(name: str) -> None:
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
