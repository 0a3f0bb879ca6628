"""The CUDA kernel of ConViT's gated positional attention, run on the host, and its mutations."""

from __future__ import annotations

import pytest
import torch

from support.simt import SimtError
from support.simt_attention import AttentionCase, GatedAttentionCase, last_key_gated, of_types, random_gated
from support.simt_mutation import mutation, mutation_test

HALF, BFLOAT = torch.float16, torch.bfloat16
# instances for up to 152 and 200 tokens
EDGES = {HALF: (1, 2, 17, 49, 56, 57, 104, 105, 152, 153, 196, 197, 200)}
LENGTHS = {
    HALF: (*EDGES[HALF], 7, 15, 16, 31, 81, 100, 144, 169, 195),
    BFLOAT: (7, 49, 105, 153),
}
HEAD_DIMS = {HALF: (8, 16, 24, 32, 40, 48, 56, 64), BFLOAT: (48, 56)}
CHECKED_HEAD_DIMS = {HALF: (8, 56, 64)}


def check_length(variant: str, tokens: int, dtype: torch.dtype) -> None:
    case = random_gated(2, 2, tokens, 48, dtype)
    case.check(case.run(variant=variant))


@pytest.mark.parametrize(("dtype", "tokens"), of_types(LENGTHS))
def test_every_length(result_variant: str, tokens: int, dtype: torch.dtype) -> None:
    check_length(result_variant, tokens, dtype)


@pytest.mark.parametrize(("dtype", "tokens"), of_types(EDGES))
def test_accesses_at_every_length(checked_variant: str, tokens: int, dtype: torch.dtype) -> None:
    check_length(checked_variant, tokens, dtype)


def check_head_dim(variant: str, head_dim: int, dtype: torch.dtype) -> None:
    case = random_gated(2, 1, 49, head_dim, dtype)
    case.check(case.run(variant=variant, order="reversed"))


@pytest.mark.parametrize(("dtype", "head_dim"), of_types(HEAD_DIMS))
def test_every_head_dimension(result_variant: str, head_dim: int, dtype: torch.dtype) -> None:
    check_head_dim(result_variant, head_dim, dtype)


@pytest.mark.parametrize(("dtype", "head_dim"), of_types(CHECKED_HEAD_DIMS))
def test_accesses_at_every_head_dimension(checked_variant: str, head_dim: int, dtype: torch.dtype) -> None:
    check_head_dim(checked_variant, head_dim, dtype)


@pytest.mark.parametrize("tokens", [16, 49, 144, 196, 200])
def test_inputs_that_show_a_wrong_edge(tokens: int) -> None:
    case = last_key_gated(tokens, 48)
    case.check(case.run())


@pytest.mark.parametrize("scale", [0.0, -0.3, 1.0])
def test_any_scale(scale: float) -> None:
    case = random_gated(1, 2, 49, 48, scale=scale)
    case.check(case.run())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tokens", [49, 196])
def test_a_gate_of_zero_gives_the_bits_of_attention(tokens: int, dtype: torch.dtype) -> None:
    case = random_gated(2, 2, tokens, 48, dtype, gate=torch.zeros(2))
    assert torch.equal(case.run()["out"], AttentionCase(case.qkv).run()["out"])


@pytest.mark.parametrize("tokens", [49, 196])
def test_a_gate_of_one_leaves_the_content_out(tokens: int) -> None:
    case = random_gated(2, 2, tokens, 48, gate=torch.ones(2))
    results = case.run()
    case.check(results)
    exact = torch.einsum("hnm,bmhd->bnhd", case.position.double(), case.qkv[:, :, 2].double())
    assert (results["out"].double() - exact).abs().max() < 2e-3 * exact.abs().max()


def test_a_nan_spoils_its_own_rows_only() -> None:
    case = random_gated(2, 1, 49, 48)
    case.qkv[1, 3, 0, 0, 5] = torch.nan  # in a query
    out = case.run()["out"]
    assert out[1, 3].isnan().all()
    out[1, 3] = 0.0
    assert out.isfinite().all()


@pytest.mark.parametrize("tokens", [17, 196])
def test_order_changes_no_bit(tokens: int) -> None:
    case = random_gated(3, 2, tokens, 64)
    expected = case.run()["out"]
    for order in ("reversed", "1", "2"):
        assert torch.equal(case.run(order=order)["out"], expected)


@pytest.mark.parametrize("head_dim", [48, 64])
def test_shared_memory_is_read_without_bank_conflicts(head_dim: int) -> None:
    assert random_gated(1, 1, 101, head_dim).run()["bank_conflicts"].item() == 0


@pytest.mark.parametrize(("tokens", "head_dim"), [(201, 48), (49, 72)])
def test_larger_heads_are_refused(tokens: int, head_dim: int) -> None:
    with pytest.raises(SimtError, match="takes up to 200 tokens and head dimensions up to 64"):
        random_gated(1, 1, tokens, head_dim).run()


# what the kernel shares with attention is held by test_mutations.py
SOFTMAX = "csrc/attention/gated_positional_attention_kernel.cuh"
ONE_INSTANCE = ("SIMT_TYPE=vitfast::Half", "SIMT_HEAD_DIM=48")

MUTATIONS = (
    mutation("position of another head", SOFTMAX, "% unsigned(a.heads);", "% 1u;", "results"),
    mutation(
        "position of another row",
        SOFTMAX,
        "row * a.position_row_stride",
        "at.row[0] * a.position_row_stride",
        "results",
        "address",
    ),
    mutation(
        "reads row N",
        SOFTMAX,
        "at.row[half] < tokens ? at.row[half] : tokens - 1",
        "at.row[half]",
        "address",
    ),
    mutation("position of another column", SOFTMAX, "row_stride + at.column", "row_stride", "results"),
    mutation("no tail", SOFTMAX, "tile < full_tiles || left > 1", "true", "results", "address"),
    mutation("pair beyond the last column", SOFTMAX, "left > 1", "left > 0", "results", "address"),
    mutation("no last column", SOFTMAX, "} else if (left == 1) {", "} else if (false) {", "results"),
    mutation("halves of a pair swapped", SOFTMAX, "T{uint16_t(pair)}", "T{uint16_t(pair >> 16)}", "results"),
    mutation("not times the sum", SOFTMAX, "positional = gate * sum", "positional = gate", "results"),
    mutation("gate of the content", SOFTMAX, "content = 1.0f - gate", "content = gate", "results"),
    mutation("sum of a lane", SOFTMAX, "    sum = sum_over<4>(sum);\n", "", "results"),
    mutation("maximum of a lane", SOFTMAX, "    maximum = maximum_over<4>(maximum);\n", "", "results"),
    mutation("logits not scaled", SOFTMAX, "  scale_logits<full_tiles>(a, logits, at);\n", "", "results"),
)


def cases() -> list[GatedAttentionCase]:
    """Calls on which every mutation shows."""
    return [random_gated(2, 2, 49, 48), last_key_gated(49, 48), random_gated(1, 2, 196, 48)]


test_mutations_are_detected = mutation_test("gated_positional_attention", cases, MUTATIONS, ONE_INSTANCE)
