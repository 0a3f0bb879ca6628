"""Registers and spills that nvcc reports for the important kernels: registers limit occupancy, spills cost time."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from vitfast_build.native_build import PTXAS_LOG_SUFFIX
from vitfast_build.resources import KernelResources, parse_report, readable_names, short_name

# kernel, as c++filt names it -> registers that leave room for as many blocks as shared memory does
HOT_KERNELS = {
    **{
        f"attention_forward_kernel<vitfast::{element}, {sizes}, vitfast::{arguments}>": registers
        for arguments, element, sizes, registers in (
            ("AttentionForward", "Half", "64, 0, 7", 128),  # ViT-B/32 at 224 pixels, DVT's first exit: 4 blocks
            ("AttentionForward", "BFloat16", "64, 0, 7", 128),
            ("AttentionForward", "Half", "64, 7, 13", 168),  # DVT's second exit: 3 blocks
            ("AttentionForward", "Half", "64, 19, 25", 168),  # ViT at 224 pixels: 3 blocks
            ("AttentionForward", "BFloat16", "64, 19, 25", 168),
            ("GatedPositionalAttention", "Half", "48, 19, 25", 168),  # ConViT at 224 pixels: 3 blocks
            ("GatedPositionalAttention", "BFloat16", "48, 19, 25", 168),
            ("GatedPositionalAttention", "Half", "64, 19, 25", 168),  # its "plus" models
        )
    },
    **{  # without bias and logits, on 9.0: 6, 5, 4 and 3 blocks
        f"attention_wgmma_kernel<vitfast::{element}, {sizes}>": registers
        for element in ("Half", "BFloat16")
        for sizes, registers in (("0, 7", 80), ("7, 13", 96), ("13, 19", 128), ("19, 25", 168))
    },
    **{  # number of warps, tiles of queries; registers are allocated to four warps at a time
        f"attention_backward_kernel<vitfast::{element}, "
        f"vitfast::AttentionBackwardShape<vitfast::{element}, {sizes}> >": registers
        for element in ("Half", "BFloat16")
        for sizes, registers in (("4, 4", 168), ("7, 2", 128), ("13, 2", 128))
    },
    "epilogue_gradient_kernel<vitfast::Half>": 64,  # 4 blocks of 8 warps
    "epilogue_gradient_kernel<vitfast::BFloat16>": 64,
    "matmul_accumulate_kernel<(vitfast::Rounding)0>": 128,  # 4 blocks
    "matmul_fp16_accumulation_kernel<false>": 168,  # 3 blocks
    "matmul_fp16_accumulation_kernel<true>": 168,
    "upsample_relations_kernel<vitfast::Half, 4>": 64,  # 4 blocks of 256 threads
    "upsample_relations_kernel<vitfast::BFloat16, 4>": 64,
    "upsample_relations_kernel<float, 4>": 64,
    "round_elements_kernel<float, vitfast::FloatRounder<vitfast::Float32Bits, (vitfast::Rounding)0> >": 64,
    "round_elements_kernel<float, vitfast::FloatRounder<vitfast::Float32Bits, (vitfast::Rounding)3> >": 80,
}


@pytest.fixture(scope="module")
def kernels() -> dict[str, list[KernelResources]]:
    """Every kernel of the last build of this checkout, one entry for each architecture."""
    root = Path(__file__).resolve().parents[2]
    found = [one for path in (root / "build").rglob(f"*{PTXAS_LOG_SUFFIX}") for one in parse_report(path.read_text())]
    if not found:
        pytest.skip("this checkout has not been built with nvcc")
    by_name: dict[str, list[KernelResources]] = {}
    for kernel, name in zip(found, readable_names([kernel.name for kernel in found]), strict=True):
        by_name.setdefault(short_name(name), []).append(kernel)
    return by_name


@pytest.mark.parametrize("name", HOT_KERNELS)
def test_a_hot_kernel_keeps_to_its_registers(kernels: dict[str, list[KernelResources]], name: str) -> None:
    assert name in kernels, f"no such kernel; there are {sorted(kernels)}"
    for kernel in kernels[name]:
        assert kernel.registers <= HOT_KERNELS[name], kernel
        assert kernel.spill_bytes == kernel.stack_bytes == 0, kernel


def test_no_kernel_spills(kernels: dict[str, list[KernelResources]]) -> None:
    spilling = {name: one for name, all_of_them in kernels.items() for one in all_of_them if one.spill_bytes}
    assert not spilling


def test_number_of_gemm_instances_is_limited(
    kernels: dict[str, list[KernelResources]],
) -> None:
    # by the compiler's name: the longer ones are too much for c++filt
    products = [one for all_of_them in kernels.values() for one in all_of_them if one.name.startswith("_ZN7cutlass")]
    count = Counter(one.architecture for one in products)
    assert set(count.values()) <= {8}, count  # four epilogues, float16 and bfloat16
    # 384 threads share a multiprocessor's registers
    assert all(one.registers <= 168 for one in products if one.architecture == "sm_90a")
