"""The CUDA kernel of matmul_accumulate on tensor cores, run on the host, against the model of the matrix unit."""

from __future__ import annotations

import pytest
import torch

from support.fp16_accumulation import AMPERE, documented_model
from support.simt_matmul_accumulate import Fp16AccumulationCase, random_fp16_accumulation
from support.simt_mutation import mutation, mutation_test

# a block and its tails, several blocks; less than a step of the depth, less than a round, and several with a rest: a
# chunk of 112 ends within the second one, and the next one is never full
SHAPES = ((1, 1, 8), (37, 5, 24), (131, 70, 136))


@pytest.mark.parametrize("chunk", [16, 112, None])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_chunk_and_tail(simt_variant: str, shape: tuple[int, int, int], chunk: int | None) -> None:
    rounds = chunk == 112
    case = random_fp16_accumulation(*shape, chunk, rounds=rounds, model=documented_model(simt_variant))
    case.check(case.run(variant=simt_variant))


def test_an_odd_number_of_columns_is_stored_one_by_one(simt_variant: str) -> None:
    case = random_fp16_accumulation(3, 33, 16, 16, rounds=True, model=documented_model(simt_variant))
    case.check(case.run(variant=simt_variant))


def test_unit_may_round_twice_within_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMT_FP16_ACCUMULATION", AMPERE.for_emulation())
    case = random_fp16_accumulation(20, 20, 96, 32, model=AMPERE)
    case.check(case.run())
    with pytest.raises(AssertionError):
        random_fp16_accumulation(20, 20, 96, 32).check(case.run())


def test_overflow_underflow_and_non_finite_values(simt_variant: str) -> None:
    x = torch.tensor(
        [
            [60000.0, 60000.0, -60000.0, 1.0],  # on its way beyond the largest number
            [6e-8, 6e-8, -6e-8, 0.0],
            [torch.inf, 1.0, 1.0, 1.0],
            [torch.nan, 1.0, 1.0, 1.0],
            [-0.0, -0.0, 0.0, -0.0],
        ]
    ).half()
    x = torch.nn.functional.pad(x, (0, 20))
    weight = torch.cat([torch.ones(1, 24).half(), x, -x])
    for rounds in (False, True):
        case = Fp16AccumulationCase(x, weight, 16, rounds, documented_model(simt_variant))
        case.check(case.run(variant=simt_variant))


def test_empty_sum_is_zero(simt_variant: str) -> None:
    case = random_fp16_accumulation(3, 5, 0, 16)
    assert torch.equal(case.run(variant=simt_variant)["out"], torch.zeros(3, 5))


def test_shared_memory_is_read_without_bank_conflicts() -> None:
    assert random_fp16_accumulation(130, 66, 128, 64).run()["bank_conflicts"].item() == 0


@pytest.mark.parametrize("order", ["reversed", "1"])
def test_the_order_of_threads_changes_no_bit(order: str) -> None:
    case = random_fp16_accumulation(130, 66, 80, 32)
    case.check(case.run(order=order))


@pytest.mark.parametrize("rounds", [False, True])
def test_the_error_keeps_to_its_bound_and_shrinks_with_the_chunk(simt_variant: str, rounds: bool) -> None:
    depth = 1024
    x, weight = torch.rand(9, depth).half(), torch.rand(7, depth).half()  # positive: sums grow, and so do errors
    exact = x.double() @ weight.double().t()
    errors, bounds = {}, {}
    for chunk in (16, 128, None):
        model = documented_model(simt_variant)
        case = Fp16AccumulationCase(x, weight, chunk, rounds, model)
        errors[chunk] = (case.run(variant=simt_variant)["out"] - exact).abs()
        steps, chunks = (chunk or depth) / model.terms, depth / (chunk or depth)
        # docs/internals/cuda_gemm.md derives it; every number is positive, so that |x| |w| is the result
        spacing = 2.0**-11 if rounds else 2.0**-24
        bounds[chunk] = 1.05 * (steps * 2.0**-11 + chunks * spacing) * exact + depth / model.terms * 2.0**-25
        assert (errors[chunk] <= bounds[chunk]).all()
    if not rounds:
        assert (errors[None] > bounds[16]).any()  # a bound that means something
        assert errors[16].mean() < errors[128].mean() < errors[None].mean()


# --- mutations ---

KERNEL = "csrc/matmul_accumulate/matmul_fp16_accumulation_kernel.cuh"

MUTATIONS = (
    mutation(
        "no barrier",
        KERNEL,
        "sync_threads();  // the round",
        "// the round",
        "results",
        "race",
        "uninitialized",
    ),
    mutation("early read", KERNEL, "    wait_for_copies<0>();\n", "", "pending"),
    mutation("one buffer", KERNEL, "buffer ^= 1)", "buffer ^= 0)", "results"),
    mutation("halves of x swapped", KERNEL, "2 * step + lane / 16)", "2 * step + 1 - lane / 16)", "results"),
    mutation(
        "halves of weight swapped",
        KERNEL,
        "[i][j], a[i], b[0], b[1])",
        "[i][j], a[i], b[1], b[0])",
        "results",
    ),
    mutation("the rest of a chunk", KERNEL, "if (left_in_chunk < a.chunk)", "if (false)", "results"),
    mutation("a sum that goes on", KERNEL, "          pair = 0;\n", "", "results"),
    mutation("accumulators not rounded", KERNEL, "if constexpr (rounds)", "if constexpr (false)", "results"),
    mutation("reads row N", KERNEL, "a.rows - first_row)", "a.rows - first_row + 1)", "address"),
    mutation("writes row N", KERNEL, "row >= a.rows", "row > a.rows", "address", "runtime"),
    mutation("writes column N", KERNEL, "column + 1 < a.columns", "column < a.columns", "address", "runtime"),
)


def cases() -> list:
    """The same of the kernel on tensor cores."""
    return [random_fp16_accumulation(70, 35, 200, 176), random_fp16_accumulation(3, 2, 24, 16, rounds=True)]


test_mutations_of_the_sums_of_tensor_cores_are_detected = mutation_test("matmul_accumulate", cases, MUTATIONS)
