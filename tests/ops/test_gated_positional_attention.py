"""ConViT's attention kernel, without gradients; gradients are in the generic tests."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from support import plain
from support.accuracy import assert_same_bits
from support.operators import FLOATS
from support.sample import Make, Sample, fuzz_seed
from support.samples import draw_gated, gated_samples
from support.shapes import LAYOUTS, in_layout
from vitfast import ops
from vitfast.ops import reference
from vitfast.ops.gated_positional_attention import has_gated_kernel
from vitfast.ops.library import has_kernel, kernel_states
from vitfast.ops.tolerance import FORWARD_FACTOR, assert_as_accurate

SAMPLES = [sample.name for sample in gated_samples(Make())]
CPU = torch.device("cpu")
needs_kernel = pytest.mark.skipif(
    not has_kernel("gated_positional_attention", "cpu"), reason="vitfast's kernels are not built"
)


def check(sample: Sample) -> Tensor:
    """Holds the result against float64; returns it."""
    out = ops.gated_positional_attention(**sample.arguments)
    exact = plain.gated_positional_attention(**sample.to(torch.float64).arguments)
    if out.dtype == torch.float64:
        torch.testing.assert_close(out, exact, rtol=1e-12, atol=1e-12)
    else:
        same = plain.gated_positional_attention(**sample.map(Tensor.contiguous).arguments)
        assert_as_accurate(out, same, exact, factor=FORWARD_FACTOR, name=str(sample))
    return out


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", SAMPLES)
def test_it_is_as_accurate_as_torch(name: str, dtype: torch.dtype) -> None:
    check(next(sample for sample in gated_samples(Make(dtype)) if sample.name == name))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_layout(layout: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for sample in gated_samples(Make(dtype)):
            expected = ops.gated_positional_attention(**sample.arguments)
            for name, tensor in sample.tensors.items():
                found = ops.gated_positional_attention(**sample.replace(**{name: in_layout(tensor, layout)}).arguments)
                torch.testing.assert_close(found, expected)


def test_drawn_calls_are_right() -> None:
    for case in range(150):
        draw = random.Random(f"{fuzz_seed()}-gated without gradients-{case}")
        check(draw_gated(draw, Make(draw.choice(FLOATS), seed=draw.getrandbits(32))))


def test_neither_threads_nor_the_batch_change_a_bit() -> None:
    threads = torch.get_num_threads()
    try:
        for sample in gated_samples(Make()):
            torch.set_num_threads(1)
            one = ops.gated_positional_attention(**sample.arguments)
            torch.set_num_threads(2)
            assert_same_bits(ops.gated_positional_attention(**sample.arguments), one)
            if "odd" not in sample.name:  # torch's GEMMs may split the work by the batch
                first = sample.replace(qkv=sample.tensors["qkv"][:1])
                assert_same_bits(ops.gated_positional_attention(**first.arguments), one[:1])
    finally:
        torch.set_num_threads(threads)


@needs_kernel
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_gate_of_zero_gives_the_bits_of_attention(dtype: torch.dtype) -> None:
    for sample in gated_samples(Make(dtype)):
        qkv, gate = sample.tensors["qkv"], sample.tensors["gate"]
        scale = sample.arguments.get("scale")
        found = ops.gated_positional_attention(**sample.replace(gate=torch.zeros_like(gate)).arguments)
        assert_same_bits(found, ops.attention_packed(qkv, scale=scale))


def test_a_gate_in_float32_beside_narrow_numbers() -> None:
    sample = gated_samples(Make(torch.bfloat16))[7]
    gate = sample.tensors["gate"].float() + 0.0007  # bfloat16 has no such number
    check(sample.replace(gate=gate))
    wide = ops.gated_positional_attention(**sample.to(torch.float32).replace(gate=gate).arguments)
    narrow = ops.gated_positional_attention(**sample.replace(gate=gate).arguments)
    torch.testing.assert_close(narrow.float(), wide, rtol=1e-2, atol=1e-2)


def test_the_reference_says_the_same() -> None:
    for sample in gated_samples(Make(torch.float64)):
        qkv, position, gate = sample.tensors.values()
        scale = sample.arguments.get("scale", qkv.shape[-1] ** -0.5)
        found = reference.gated_positional_attention(qkv, position, gate, scale)
        torch.testing.assert_close(found, plain.gated_positional_attention(**sample.arguments))


@needs_kernel
def test_which_calls_have_a_kernel() -> None:
    assert has_gated_kernel(CPU, torch.float32, 196, 48)
    assert not has_gated_kernel(CPU, torch.float32, 196, 44)
    assert not has_gated_kernel(CPU, torch.float32, 196, 136)
    assert not has_gated_kernel(torch.device("meta"), torch.float32, 196, 44)
    with kernel_states({("gated_positional_attention", "cuda"): "vitfast"}):
        assert not has_gated_kernel(torch.device("cuda"), torch.float32, 196, 48)
        assert not has_gated_kernel(torch.device("cuda"), torch.float16, 257, 48)


@needs_kernel
def test_raw_operator_checks_its_arguments() -> None:
    raw = torch.ops.vitfast.gated_positional_attention
    qkv, position, gate = torch.randn(2, 4, 3, 2, 8), torch.rand(2, 4, 4), torch.rand(2)
    for name, call in (
        ("qkv", (qkv[0], position, gate)),
        ("position", (qkv, position[:1], gate)),
        ("position", (qkv, position.double(), gate)),
        ("gate", (qkv, position, gate[:1])),
        ("gate", (qkv, position, gate.double())),
    ):
        with pytest.raises(RuntimeError, match=f"gated_positional_attention: {name} "):
            raw(*call, 1.0)
