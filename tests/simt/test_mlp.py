"""The CUDA kernel of the MLP, run on the host."""

from __future__ import annotations

import pytest
import torch

from support.simt_mlp import random_mlp
from support.simt_mutation import mutation, mutation_test

# channels and hidden units: every instance whole and in part; a last group of hidden units that is not full
WIDTHS = ((64, 64), (64, 128), (40, 72), (8, 8), (128, 136), (96, 64), (192, 128), (152, 200))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("channels", "hidden"), WIDTHS)
def test_every_width(simt_variant: str, channels: int, hidden: int, dtype: torch.dtype) -> None:
    case = random_mlp(70, channels, hidden, dtype)
    case.check(case.run(variant=simt_variant))


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 63, 64, 65])
def test_every_number_of_rows(simt_variant: str, rows: int) -> None:
    case = random_mlp(rows, 64, 128)
    case.check(case.run(variant=simt_variant, order="reversed"))


def test_tiles_of_128_rows(simt_variant: str) -> None:
    case = random_mlp(130, 192, 192, torch.bfloat16)
    case.check(case.run(variant=simt_variant, large_tiles=True))


def test_vit_tiny() -> None:
    case = random_mlp(197, 192, 768, torch.bfloat16)
    results = case.run()
    case.check(results)
    assert torch.equal(results["out"], case.run(large_tiles=True)["out"])


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("biases", [False, True])
def test_without_biases_or_residual(simt_variant: str, biases: bool, residual: bool) -> None:
    case = random_mlp(33, 64, 64, biases=biases, residual=residual)
    case.check(case.run(variant=simt_variant))


@pytest.mark.parametrize("order", ["reversed", "1", "2"])
def test_the_order_of_threads_changes_no_bit(order: str) -> None:
    case = random_mlp(70, 64, 200)
    assert torch.equal(case.run(order=order)["out"], case.run()["out"])


def test_a_nan_stays_in_its_row() -> None:
    case = random_mlp(40, 64, 64)
    expected = case.run()["out"]
    case.x[7, 3] = torch.nan
    out = case.run()["out"]
    assert out[7].isnan().all()
    out[7] = expected[7]
    assert torch.equal(out, expected)


@pytest.mark.parametrize("channels", [64, 128, 192])
def test_shared_memory_is_read_without_bank_conflicts(channels: int) -> None:
    assert random_mlp(16, channels, 64).run()["bank_conflicts"].item() == 0


# --- mutations ---

KERNEL = "csrc/mlp/mlp_kernel.cuh"
ONE_INSTANCE = ("SIMT_TYPE=vitfast::Half", "SIMT_WIDTH=64")

MUTATIONS = (
    mutation("no barrier", KERNEL, "sync_threads();  // the weights are loaded", "// the weights are there", "race"),
    mutation("weights: early read", KERNEL, "    wait_for_copies<0>();\n", "", "results", "pending"),
    mutation("one buffer", KERNEL, "buffer ^= 1)", "buffer ^= 0)", "results"),
    mutation("x: no sync_warp", KERNEL, "sync_warp();  // all lanes have read", "// all lanes have read", "race"),
    mutation("residual: no wait", KERNEL, "  wait_for_copies<0>();\n  sync_warp();", "  sync_warp();", "pending"),
    mutation(
        "residual: no sync_warp", KERNEL, "sync_warp();  // the residual", "// the residual", "results", "pending"
    ),
    mutation("result: no sync_warp", KERNEL, "sync_warp();  // the result", "// the result", "results", "race"),
    mutation("fragment swapped", KERNEL, "(d[tile], a, b[0], b[1])", "(d[tile], a, b[1], b[0])", "results"),
    mutation("writes row N", KERNEL, "warp_row + row >= a.rows", "warp_row + row > a.rows", "address", "runtime"),
    mutation("reads bias F", KERNEL, "column < count ?", "column <= count ?", "results", "address"),
)


def cases() -> list:
    """Calls on which every mutation shows."""
    return [random_mlp(70, 64, 200), random_mlp(17, 40, 136)]


test_mutations_are_detected = mutation_test("mlp", cases, MUTATIONS, ONE_INSTANCE)
