"""Each primitive of csrc/cuda alone: the emulation agrees with NVIDIA's documentation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from support import simt


def run(kernel: str, inputs: dict[str, Tensor], outputs: dict, variant: str, **options: object) -> dict[str, Tensor]:
    return simt.run("primitives", inputs, outputs, {"kernel": kernel, **options}, variant=variant)


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix_puts_pairs_of_a_row_into_registers(simt_variant: str, transposed: bool) -> None:
    matrices = torch.arange(4 * 64, dtype=torch.int16).reshape(4, 8, 8)  # an element is its own index
    outputs = {"registers": ((32, 4, 2), torch.int16)}
    registers = run("ldmatrix", {"matrices": matrices}, outputs, simt_variant, transposed=int(transposed))["registers"]
    for lane in range(32):
        row, pair = divmod(lane, 4)
        for m in range(4):
            matrix = matrices[m].T if transposed else matrices[m]
            assert registers[lane, m].tolist() == [matrix[row, 2 * pair], matrix[row, 2 * pair + 1]], (lane, m)


@pytest.mark.parametrize("type", ["float16", "bfloat16"])
def test_mma_multiplies_matrices(simt_variant: str, type: str) -> None:
    dtype = torch.bfloat16 if type == "bfloat16" else torch.float16
    # small integers: every sum is exact, and no two rows or columns are alike
    a = torch.randint(-8, 9, (16, 16)).to(dtype)
    b = torch.randint(-8, 9, (16, 8)).to(dtype)
    c = torch.randint(-99, 100, (16, 8)).float()
    outputs = {"d": ((16, 8), torch.float32)}
    d = run("mma", {"a": a, "b": b, "c": c}, outputs, simt_variant, type=type)["d"]
    assert torch.equal(d, a.float() @ b.float() + c)


@pytest.mark.parametrize("position", [(0, 0, 0), (3, 9, 5), (12, 2, 7), (15, 15, 4)])
def test_mma_uses_every_element_once(simt_variant: str, position: tuple[int, int, int]) -> None:
    row, depth, column = position
    a, b = torch.zeros(16, 16).half(), torch.zeros(16, 8).half()
    a[row, depth], b[depth, column] = 3.0, 5.0
    inputs = {"a": a, "b": b, "c": torch.zeros(16, 8)}
    d = run("mma", inputs, {"d": ((16, 8), torch.float32)}, simt_variant, type="float16")["d"]
    expected = torch.zeros(16, 8)
    expected[row, column] = 15.0
    assert torch.equal(d, expected)


def test_asynchronous_copies_land_and_fill_with_zeros(simt_variant: str) -> None:
    x = torch.randn(64, 4)
    y = run("copy_async", {"x": x}, {"y": ((64, 4), torch.float32)}, simt_variant)["y"]
    copied = x.clone()
    copied[::3] = 0.0
    assert torch.equal(y, copied.flip(0))


def test_reductions_over_lanes(simt_variant: str) -> None:
    x = torch.randint(-99, 100, (32,)).float()
    y = run("reduce", {"x": x}, {"y": ((4, 32), torch.float32)}, simt_variant)["y"]
    quads = x.reshape(8, 4)
    assert torch.equal(y[0], quads.sum(1).repeat_interleave(4))
    assert torch.equal(y[1], x.sum().expand(32))
    assert torch.equal(y[2], quads.amax(1).repeat_interleave(4))
    assert torch.equal(y[3], x.amax().expand(32))


def test_votes_are_counted(simt_variant: str) -> None:
    x = torch.randn(32)
    y = run("votes", {"x": x}, {"y": ((2, 32), torch.float32)}, simt_variant)["y"]
    is_positive = (x > 0).float()
    assert torch.equal(y[0], is_positive.cumsum(0) - is_positive)
    assert torch.equal(y[1], is_positive.sum().expand(32))


def test_conversions_round_as_torch_does(simt_variant: str) -> None:
    random_bits = torch.randint(-(2**31), 2**31 - 1, (20_000,)).to(torch.int32).view(torch.float32)
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
    midpoints = (halves[:-1] + halves[1:]) / 2
    x = torch.cat([random_bits, halves, midpoints])
    outputs = {
        "half": ((x.numel(),), torch.float16),
        "bfloat": ((x.numel(),), torch.bfloat16),
        "back": ((x.numel(), 2), torch.float32),
    }
    results = run("numbers", {"x": x}, outputs, simt_variant, count=x.numel())
    for name, dtype, column in (("half", torch.float16, 0), ("bfloat", torch.bfloat16, 1)):
        expected = x.to(dtype)
        assert torch.equal(results[name].isnan(), x.isnan())
        assert torch.equal(results[name][~x.isnan()], expected[~x.isnan()])
        assert torch.equal(results["back"][~x.isnan(), column], expected[~x.isnan()].float())
