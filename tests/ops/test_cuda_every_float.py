"""quantize_float on a GPU, for each of the 2^32 float32: against torch's conversions, and against the CPU's kernel.

What is compared, and how, is tested on the CPU over a part of the numbers.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from support.every_float import ALL, assert_same_roundings, count_differences, every_float
from vitfast import ops
from vitfast.formats import FloatFormat
from vitfast.ops.library import has_kernel

# format -> the type that torch stores it in
TORCH_TYPES = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
# roundings that torch has not, by the CPU's kernel, which exact arithmetic has judged
HOST_CASES = {
    "tf32": (FloatFormat.tf32(), "nearest_even"),
    "fp16 away": (FloatFormat.fp16(), "nearest_away"),
    "fp8 toward zero": (FloatFormat.fp8_e4m3fn(), "toward_zero"),
    "qtorch": (FloatFormat.qtorch(5, 10), "qtorch"),
}


def check_against_torch(name: str, device: torch.device, start: int = 0, stop: int = ALL) -> int:
    format, dtype = getattr(FloatFormat, name)(), TORCH_TYPES[name]
    beyond = torch.tensor(3.4e38, device=device).to(dtype).float()  # float8_e4m3fn gave NaN once and gives 448 today
    overflow = "nan" if beyond.isnan() else "inf" if beyond.isinf() else "saturate"

    def own(x: Tensor) -> Tensor:
        return ops.quantize_float(x, format, overflow=overflow)

    return assert_same_roundings(own, lambda x: x.to(dtype).to(x.dtype), every_float(device, start, stop))


def check_against_the_host(name: str, device: torch.device, start: int = 0, stop: int = ALL) -> int:
    format, rounding = HOST_CASES[name]

    def own(x: Tensor) -> Tensor:
        return ops.quantize_float(x, format, rounding=rounding)  # type: ignore[arg-type]

    return assert_same_roundings(own, lambda x: own(x.cpu()), every_float(device, start, stop))


@pytest.fixture
def gpu() -> torch.device:
    if not has_kernel("quantize_float", "cuda"):
        pytest.skip("torch's operators run on this GPU: set VITFAST_CUDA_KERNELS=all")
    return torch.device("cuda")


@pytest.mark.cuda
@pytest.mark.parametrize("name", TORCH_TYPES)
def test_every_float_is_rounded_as_torch_does(gpu: torch.device, name: str) -> None:
    assert check_against_torch(name, gpu) == ALL


@pytest.mark.cuda
@pytest.mark.parametrize("name", HOST_CASES)
def test_every_float_is_rounded_as_on_the_cpu(gpu: torch.device, name: str) -> None:
    assert check_against_the_host(name, gpu) == ALL


# around 1, around the largest half, subnormals, infinity and NaN, negative numbers
@pytest.mark.parametrize("start", [0x3F7FF000, 0x477FD000, 0x00000000, 0x7F7FF000, 0xFF7FF000, 0xC0000000])
@pytest.mark.parametrize("name", TORCH_TYPES)
def test_the_check_against_torch_holds_on_the_cpu(name: str, start: int) -> None:
    assert check_against_torch(name, torch.device("cpu"), start, start + 0x4000) == 0x4000


@pytest.mark.parametrize("name", HOST_CASES)
def test_the_check_against_the_host_holds_on_the_cpu(name: str) -> None:
    assert check_against_the_host(name, torch.device("cpu"), 0x3F7FF000, 0x3F803000) == 0x4000


def test_the_chunks_are_all_floats_once() -> None:
    chunks = list(every_float(torch.device("cpu"), 2**31 - 300, 2**31 + 301, chunk=100))
    assert [len(chunk) for chunk in chunks] == [100] * 6 + [1]
    bits = torch.cat(chunks).view(torch.int32)
    assert bits.tolist() == [*range(2**31 - 300, 2**31), *range(-(2**31), -(2**31) + 301)]


def test_a_difference_is_found() -> None:
    x = next(every_float(torch.device("cpu"), 0x3F800000, 0x3F800100))
    wrong = x.clone()
    wrong[17] = wrong[17].nextafter(torch.tensor(2.0))
    assert count_differences(wrong, x) == 1
    assert count_differences(torch.tensor([0.0]), torch.tensor([-0.0])) == 1
    assert count_differences(torch.tensor([torch.nan]), torch.tensor([-torch.nan])) == 0
    with pytest.raises(AssertionError, match=r"1 differ between 1\.0 and"):
        assert_same_roundings(lambda _: wrong, lambda x: x, iter([x]))
