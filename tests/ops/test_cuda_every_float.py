"""quantize_float on a GPU for all 2^32 float32 numbers, compared with torch's conversions and with the CPU kernel.

The CPU kernel takes half a minute for all numbers, so those tests are slow: ``pytest -m "cuda and not slow"`` compares
a sample. The comparison itself is tested on the CPU with a subset of the numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from vitfast import ops
from vitfast.formats import FloatFormat
from vitfast.ops.library import has_kernel

ALL = 2**32
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


def every_float(device: torch.device, start: int = 0, stop: int = ALL, chunk: int = 2**26) -> Iterator[Tensor]:
    """Yields the float32 numbers with the bit patterns from ``start`` to ``stop``."""
    for first in range(start, stop, chunk):
        # as int32: from 0 up, then from the smallest negative number up
        bits = torch.arange(first, min(first + chunk, stop), device=device)
        yield torch.where(bits < 2**31, bits, bits - 2**32).to(torch.int32).view(torch.float32)


def sampled_floats(device: torch.device) -> Iterator[Tensor]:
    """Yields float32 numbers with all patterns of the upper 20 bits (sign, exponent and 11 bits of the mantissa).

    Of the lower 12 bits there are those of ties, of their neighbours, and others.
    """
    upper = torch.arange(0, ALL, 2**12, device=device)
    lower = [0, 1, 2, 0x7FF, 0x800, 0x801, 0xFFE, 0xFFF, *range(0x0A5, 0xFFF, 0x1D3)]
    bits = (upper[:, None] + torch.tensor(lower, device=device)).flatten()
    yield torch.where(bits < 2**31, bits, bits - 2**32).to(torch.int32).view(torch.float32)


def count_differences(actual: Tensor, expected: Tensor) -> int:
    """Number of elements with different bits; all NaNs are equal."""
    same = (actual.view(torch.int32) == expected.view(torch.int32)) | (actual.isnan() & expected.isnan())
    return same.numel() - int(same.sum())


def assert_same_roundings(
    one: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor], chunks: Iterator[Tensor]
) -> int:
    """Asserts that two roundings are bit-exact; returns the number of elements."""
    total = 0
    for x in chunks:
        actual, expected = one(x), other(x)
        differences = count_differences(actual, expected.to(actual.device))
        assert not differences, f"{differences} differ between {float(x[0])!r} and {float(x[-1])!r}"
        total += x.numel()
    return total


def check_against_torch(name: str, device: torch.device, start: int = 0, stop: int = ALL) -> int:
    format, dtype = getattr(FloatFormat, name)(), TORCH_TYPES[name]
    beyond = torch.tensor(3.4e38, device=device).to(dtype).float()  # float8_e4m3fn gave NaN once and gives 448 today
    overflow = "nan" if beyond.isnan() else "inf" if beyond.isinf() else "saturate"

    def own(x: Tensor) -> Tensor:
        return ops.quantize_float(x, format, overflow=overflow)

    return assert_same_roundings(own, lambda x: x.to(dtype).to(x.dtype), every_float(device, start, stop))


def check_against_the_host(name: str, chunks: Iterator[Tensor]) -> int:
    format, rounding = HOST_CASES[name]

    def own(x: Tensor) -> Tensor:
        return ops.quantize_float(x, format, rounding=rounding)  # type: ignore[arg-type]

    return assert_same_roundings(own, lambda x: own(x.cpu()), chunks)


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
@pytest.mark.slow
@pytest.mark.parametrize("name", HOST_CASES)
def test_every_float_is_rounded_as_on_the_cpu(gpu: torch.device, name: str) -> None:
    assert check_against_the_host(name, every_float(gpu)) == ALL


@pytest.mark.cuda
@pytest.mark.parametrize("name", HOST_CASES)
def test_a_sample_is_rounded_as_on_the_cpu(gpu: torch.device, name: str) -> None:
    assert check_against_the_host(name, sampled_floats(gpu)) == 17 * 2**20


# around 1, around the largest half, subnormals, infinity and NaN, negative numbers
@pytest.mark.parametrize("start", [0x3F7FF000, 0x477FD000, 0x00000000, 0x7F7FF000, 0xFF7FF000, 0xC0000000])
@pytest.mark.parametrize("name", TORCH_TYPES)
def test_the_check_against_torch_holds_on_the_cpu(name: str, start: int) -> None:
    assert check_against_torch(name, torch.device("cpu"), start, start + 0x4000) == 0x4000


@pytest.mark.parametrize("name", HOST_CASES)
def test_the_check_against_the_host_holds_on_the_cpu(name: str) -> None:
    assert check_against_the_host(name, every_float(torch.device("cpu"), 0x3F7FF000, 0x3F803000)) == 0x4000


def test_the_chunks_are_all_floats_once() -> None:
    chunks = list(every_float(torch.device("cpu"), 2**31 - 300, 2**31 + 301, chunk=100))
    assert [len(chunk) for chunk in chunks] == [100] * 6 + [1]
    bits = torch.cat(chunks).view(torch.int32)
    assert bits.tolist() == [*range(2**31 - 300, 2**31), *range(-(2**31), -(2**31) + 301)]


def test_the_sample_has_ties_and_special_numbers() -> None:
    (sample,) = sampled_floats(torch.device("cpu"))
    bits = set(sample.view(torch.int32).tolist())
    assert len(bits) == len(sample) == 17 * 2**20
    # -0, 1, infinity, the smallest subnormal, and ties between neighbours of tf32, fp16 (subnormal too) and fp8
    for number in (-0.0, 1.0, torch.inf, 2.0**-149, 1 + 2.0**-11, 1 + 3 * 2.0**-11, 2.0**-25, 1 + 2.0**-4):
        assert torch.tensor(number).view(torch.int32).item() in bits


def test_a_difference_is_found() -> None:
    x = next(every_float(torch.device("cpu"), 0x3F800000, 0x3F800100))
    wrong = x.clone()
    wrong[17] = wrong[17].nextafter(torch.tensor(2.0))
    assert count_differences(wrong, x) == 1
    assert count_differences(torch.tensor([0.0]), torch.tensor([-0.0])) == 1
    assert count_differences(torch.tensor([torch.nan]), torch.tensor([-torch.nan])) == 0
    with pytest.raises(AssertionError, match=r"1 differ between 1\.0 and"):
        assert_same_roundings(lambda _: wrong, lambda x: x, iter([x]))
