"""Reports of infinity and NaN that a rounding hides; products of operands that float16 represents."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from support.operator_calls import OperatorCalls
from vitfast.formats import FloatFormat
from vitfast.quantization.arithmetic import Fp16Product, RoundedArithmetic
from vitfast.quantization.rounders import DeviceFlag, FixedRounder, FloatRounder, Rounder, fits_fp16, has_non_finite


class FakeEvent:
    """An event that has happened when the test says so."""

    happened = False

    def record(self, stream: object) -> None:
        pass

    def query(self) -> bool:
        return self.happened


def test_flags_on_a_gpu_are_read_without_waiting_and_none_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    flag = DeviceFlag()
    monkeypatch.setattr(FakeEvent, "happened", False)
    # the second flag is set while the copy of the first is in flight
    assert [flag.add(torch.tensor(value)) for value in (False, True, False)] == [False, False, False]
    monkeypatch.setattr(FakeEvent, "happened", True)
    # the first copy ends without a flag, the second one holds it, the third one does not
    assert [flag.add(torch.tensor(False)) for _ in range(3)] == [False, True, False]


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_non_finite_elements_are_found(value: float, dtype: torch.dtype) -> None:
    x = torch.full((3, 5), torch.finfo(dtype).max, dtype=dtype)
    assert not has_non_finite(x)
    assert not has_non_finite(x[:0])
    x[1, 2] = value
    assert has_non_finite(x)


@pytest.mark.parametrize(
    ("rounder", "fits"),
    [
        (FloatRounder(FloatFormat.fp16()), True),
        (FloatRounder(FloatFormat.fp8_e4m3fn()), True),
        (FloatRounder(FloatFormat.fp8_e5m2()), True),
        (FloatRounder(FloatFormat.fp4_e2m1()), True),
        (FloatRounder(FloatFormat.bf16()), False),
        (FloatRounder(FloatFormat.tf32()), False),
        (FloatRounder(FloatFormat.ieee(5, 11)), False),
        (FloatRounder(FloatFormat.qtorch(5, 10), "qtorch"), False),
        (FixedRounder(11, 8), True),
        (FixedRounder(12, 24), True),
        (FixedRounder(12, -4), True),
        (FixedRounder(12, -5), False),
        (FixedRounder(13, 8), False),
        (FixedRounder(8, 25), False),
    ],
)
def test_float16_represents_what_fits(rounder: Rounder, fits: bool) -> None:
    assert fits_fp16(rounder) == fits
    x = rounder(torch.randn(1 << 16) * torch.logspace(-40, 20, 1 << 16, 2.0))
    assert torch.equal(x.half().float(), x) == fits


def test_products_of_float16_operands() -> None:
    x = torch.randn(2, 5, 40).half().float().requires_grad_()
    weight = torch.randn(24, 40).half().float().requires_grad_()
    bias = torch.randn(24).requires_grad_()
    results = []
    for function in (Fp16Product.apply, F.linear):
        out = function(x, weight, bias)
        results.append((out, *torch.autograd.grad(out.square().sum(), (x, weight, bias))))
    for found, expected in zip(*results, strict=True):
        error = (found - expected).abs().max()
        assert error <= 40 * 2.0**-24 * expected.abs().max()  # only the order of the sums of 40 products differs


@pytest.mark.parametrize(
    ("rounding", "gemm"),
    [(FloatRounder(FloatFormat.fp16()), "mm.dtype"), (FloatRounder(FloatFormat.bf16()), "addmm")],
)
def test_a_gpu_multiplies_float16_operands_on_its_tensor_cores(rounding: FloatRounder, gemm: str) -> None:
    with FakeTensorMode(), OperatorCalls("aten") as calls:
        layer = torch.nn.Linear(64, 32, device="cuda")
        x = torch.randn(2, 5, 64, device="cuda")
        out = RoundedArithmetic(rounding, converted=True).linear(layer, F.linear, x, layer.weight)
        assert (out.shape, out.dtype) == ((2, 5, 32), torch.float32)
    assert gemm in calls.names
