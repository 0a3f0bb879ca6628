"""The epilogue of the CUDA GEMMs, run on the host: GELU of every 16-bit number, and all parts together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from support import simt
from support.sixteen_bits import every_number, spacing
from vitfast.ops.tolerance import FORWARD_FACTOR, assert_as_accurate

TYPES = [torch.bfloat16, torch.float16]
COLUMNS = 24


def run_epilogue(
    sums: Tensor,
    dtype: torch.dtype,
    activation: str,
    *,
    variant: str,
    **addends: Tensor,
) -> Tensor:
    """The epilogue of ``sums`` [rows, columns] in float32; the result has ``dtype``."""
    options = {"activation": activation, "count": sums.numel(), "columns": sums.shape[-1]}
    outputs = {"y": (sums.shape, dtype)}
    inputs = {"sums": sums, **addends}
    return simt.run("gemm_epilogue", inputs, outputs, options, element=dtype, variant=variant)["y"]


def gelu(x: Tensor, activation: str) -> Tensor:
    """GELU in the type of x; erf in a form that keeps the lower tail."""
    if activation == "gelu_tanh":
        return x * torch.sigmoid(2 * (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))
    return x * 0.5 * torch.special.erfc(-x * 0.5**0.5)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_gelu_of_every_number(result_variant: str, activation: str, dtype: torch.dtype) -> None:
    x = every_number(dtype)
    y = run_epilogue(x, dtype, activation, variant=result_variant)
    assert torch.equal(y.isnan(), x.isnan())
    finite = x.isfinite()
    exact = gelu(x.double(), activation)[finite]
    error = (y[finite].double() - exact).abs()
    # what rounding to the type costs, a little more for the polynomial; far below zero GELU has vanished beside any sum
    allowed = 0.65 * spacing(exact, dtype) + (1.2e-7 if dtype == torch.bfloat16 else 3e-8)
    worst = (error - allowed).argmax()
    assert (error <= allowed).all(), f"at {x[finite][worst]}: {y[finite][worst]}, not {exact[worst]}"
    assert (y[x == torch.inf] == torch.inf).all()
    assert (y[x == -torch.inf].float().abs() <= 2e-7).all()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("parts", ["", "scale", "residual", "scale residual"])
def test_all_parts_together(result_variant: str, parts: str, dtype: torch.dtype) -> None:
    check_parts(result_variant, parts, dtype)


@pytest.mark.parametrize("parts", ["", "scale residual"])
def test_accesses_of_the_parts(checked_variant: str, parts: str) -> None:
    check_parts(checked_variant, parts, torch.bfloat16)


def check_parts(variant: str, parts: str, dtype: torch.dtype) -> None:
    sums = torch.randn(40, COLUMNS)
    shapes = {"scale": (COLUMNS,), "residual": (40, COLUMNS)}
    addends = {name: torch.randn(shapes[name]).to(dtype) for name in parts.split()}

    def plain(y: Tensor, scale: Tensor | int = 1, residual: Tensor | int = 0) -> Tensor:
        return y * scale + residual

    y = run_epilogue(sums, dtype, "none", variant=variant, **addends)
    exact = plain(sums.double(), **{name: addend.double() for name, addend in addends.items()})
    assert_as_accurate(y, plain(sums.to(dtype), **addends), exact, factor=FORWARD_FACTOR)
