"""The device code of quantize_float, run on the host, against the operator of the CPU, bit by bit."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vitfast import ops
from vitfast.ops.rounding import OVERFLOW_CODES, ROUNDING_CODES
from vitfast.quantization import FloatFormat
from vitfast_build.cuda_toolkit import find_toolkit
from vitfast_build.toolchain import find_compiler

# in the order of quantize_float_on_host.cpp -> the integer of the same size
TYPES = {
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.float64: torch.int64,
}
FORMATS = (FloatFormat.fp16(), FloatFormat.fp8_e4m3fn(), FloatFormat.qtorch(5, 10), FloatFormat.ieee(8, 10))


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernel's source, compiled by the host's compiler with CUDA's number types."""
    toolkit = find_toolkit(os.environ)
    if toolkit is None:
        pytest.skip("no CUDA toolkit: its headers define the half-precision types")
    root = Path(__file__).resolve().parents[2]
    target = tmp_path_factory.mktemp("kernel") / "quantize_float.so"
    headers = [f"-I{root}", "-isystem", str(toolkit.folder / "include")]
    source = Path(__file__).with_name("quantize_float_on_host.cpp")
    flags = ["-O1", "-std=c++17", "-shared", "-fPIC", "-Wno-unknown-pragmas"]
    subprocess.run([*find_compiler(os.environ).command, *flags, *headers, source, "-o", target], check=True)
    return ctypes.CDLL(str(target))


def _every_kind_of_number(dtype: torch.dtype, count: int, offset: int) -> Tensor:
    """Random bits (subnormals, infinities, NaN) and numbers near 1, starting ``offset`` elements into their memory."""
    bits = torch.randint(-(2**63), 2**63 - 1, (count + offset,)).view(torch.int64)
    numbers = bits.to(TYPES[dtype]).view(dtype) if dtype != torch.float64 else bits.view(dtype)
    return torch.where(torch.rand(count + offset) < 0.5, numbers, torch.randn(count + offset).to(dtype))[offset:]


def _run(kernel: ctypes.CDLL, x: Tensor, y: Tensor, format: FloatFormat, rounding: str, seed: int, blocks: int) -> None:
    integers = (format.exponent_bits, format.mantissa_bits)
    flags = (format.has_inf, format.has_nan, format.signed_zero, OVERFLOW_CODES[format.overflow])
    kernel.quantize_float_on_host(
        ctypes.c_int64(list(TYPES).index(x.dtype)),
        ctypes.c_int64(ROUNDING_CODES[rounding]),
        ctypes.c_void_p(x.data_ptr()),
        ctypes.c_void_p(y.data_ptr()),
        ctypes.c_int64(x.numel()),
        *(ctypes.c_int64(value) for value in integers),
        ctypes.c_double(format.max_value),
        *(ctypes.c_int64(int(value)) for value in flags),
        ctypes.c_int64(seed),
        ctypes.c_int64(blocks),
    )


def _assert_same(actual: Tensor, expected: Tensor) -> None:
    """The same bits; a NaN may be any NaN."""
    assert torch.equal(actual.isnan(), expected.isnan())
    kept = ~expected.isnan()
    integer = TYPES[expected.dtype]
    assert torch.equal(actual[kept].view(integer), expected[kept].view(integer))


@pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("rounding", ROUNDING_CODES)
@pytest.mark.parametrize("format", FORMATS, ids=("fp16", "fp8_e4m3fn", "qtorch_5_10", "ieee_8_10"))
def test_device_code_rounds_as_the_cpu(
    kernel: ctypes.CDLL, dtype: torch.dtype, rounding: str, format: FloatFormat
) -> None:
    # whole blocks of 64 and a rest; the same without alignment; fewer than one block; more and fewer threads than work
    for count, offset, blocks in ((64 * 37 + 29, 0, 3), (64 * 9 + 5, 1, 2), (63, 0, 1), (64, 0, 5), (1, 0, 1)):
        x = _every_kind_of_number(dtype, count, offset)
        y = torch.empty(count + offset, dtype=dtype)[offset:]
        _run(kernel, x, y, format, rounding, 1234567890123, blocks)
        seed = 1234567890123 if rounding == "stochastic" else None
        _assert_same(y, ops.quantize_float(x, format, rounding=rounding, seed=seed))


def test_device_code_rounds_in_place(kernel: ctypes.CDLL) -> None:
    x = _every_kind_of_number(torch.float32, 64 * 5 + 3, 0)
    expected = ops.quantize_float(x, FloatFormat.fp16())
    _run(kernel, x, x, FloatFormat.fp16(), "nearest_even", 0, 2)
    _assert_same(x, expected)
