"""Token merging of accelerated models, alone and within blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from support.packed_cases import (
    OPS,
    PRECISIONS,
    block_arguments,
    block_parameters,
    check_merging,
    check_merging_blocks,
    draw,
    on_threads,
)
from vitfast.ops.library import has_kernel

if not has_kernel("packed", "cpu"):
    pytest.skip("pure PyTorch: there are no packed operators", allow_module_level=True)


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("tokens", [7, 13, 64, 197])
def test_merging(tokens: int, prefix: int) -> None:
    for count in {1, (tokens - prefix + 2) // 4, (tokens - prefix) // 2}:
        check_merging(3, tokens, 20, 2, 9, count, prefix)


@pytest.mark.parametrize(("channels", "heads", "head_dim"), [(1, 1, 2), (192, 3, 64), (33, 4, 7), (5, 1, 300)])
def test_any_width(channels: int, heads: int, head_dim: int) -> None:
    check_merging(2, 50, channels, heads, head_dim, 9, 1)


def test_equal_similarities_are_merged_in_the_order_of_the_tokens() -> None:
    x, keys = draw(1, 9, 4), torch.ones(1, 9, 1, 3)
    _, sizes, places = OPS.merge_tokens(x, keys, None, 2, 1)
    assert places.tolist() == [[0, 3, 3, 4, 3, 5, 1, 6, 2]]
    assert sizes.tolist() == [[1, 1, 1, 3, 1, 1, 1]]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_non_finite_number_stays_in_its_image(bad: float) -> None:
    x, keys = draw(3, 30, 8), draw(3, 30, 2, 8)
    expected = OPS.merge_tokens(x, keys, None, 6, 1)
    keys[1] = bad
    out, _, places = OPS.merge_tokens(x, keys, None, 6, 1)
    for image in (0, 2):
        assert torch.equal(out[image], expected[0][image])
    assert set(places[1].tolist()) == set(range(24))


def test_the_number_of_threads_and_the_layout_of_keys_change_no_bit() -> None:
    x, qkv = draw(5, 60, 24), draw(5, 60, 3, 2, 16)
    keys = qkv[:, :, 1]
    results = on_threads((1, 2, 7), lambda: OPS.merge_tokens(x, keys, None, 11, 1)[0])
    results += [OPS.merge_tokens(x, other, None, 11, 1)[0] for other in (keys.contiguous(), keys.mT.contiguous().mT)]
    for result in results[1:]:
        assert torch.equal(result, results[0])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("batch", [1, 2, 5, 16])
def test_blocks_that_merge_equal_one_operator_after_the_other(batch: int, precision: str) -> None:
    """Images of 30 tokens are run several at a time; ten tokens are left after the first block of the last case."""
    for tokens, count in ((30, 4), (197, 16), (19, 100)):
        check_merging_blocks(batch, tokens, count, precision)
    check_merging_blocks(batch, 60, 8, precision, is_gated=True)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_neither_threads_nor_batch_change_a_bit_of_blocks_that_merge(precision: str) -> None:
    parameters, options = block_arguments(block_parameters(48, 3, 16, 96, extras=False), 3, "gelu", precision)

    def call(x: Tensor) -> Tensor:
        return OPS.packed_merging_blocks(x, None, parameters * 3, *options, 5, 1)[0]

    x = draw(12, 100, 48)
    results = [*on_threads((1, 2, 3, 5, 16), lambda: call(x)), torch.cat([call(x[:5]), call(x[5:])])]
    for result in results[1:]:
        assert torch.equal(result, results[0])


def test_blocks_that_merge_nothing() -> None:
    parameters, options = block_arguments(block_parameters(48, 3, 16, 96, extras=False), 3, "gelu", "fp32")
    x = draw(2, 9, 48)
    out, sizes, places = OPS.packed_merging_blocks(x, None, parameters * 2, *options, 0, 1)
    assert torch.equal(out, OPS.packed_blocks(x, parameters * 2, [None] * 14, *options))
    assert torch.equal(sizes, torch.ones(2, 9))
    assert torch.equal(places, torch.arange(9).expand(2, -1))
    alone = OPS.packed_merging_blocks(x, None, parameters, *options, 3, 9)  # of the prefix nothing is merged
    assert torch.equal(alone[0], OPS.packed_blocks(x, parameters, [None] * 7, *options))
    assert OPS.packed_merging_blocks(x[:0], None, parameters, *options, 3, 1)[0].shape == (0, 6, 48)


def test_opcheck() -> None:
    x, sizes = draw(2, 21, 48), torch.ones(2, 21)
    torch.library.opcheck(OPS.merge_tokens.default, (x, draw(2, 21, 3, 2, 8)[:, :, 1], sizes, 4, 1))
    parameters, options = block_arguments(block_parameters(48, 3, 16, 96, extras=True), 3, "gelu", "fp32")
    torch.library.opcheck(OPS.packed_merging_blocks.default, (x, sizes, parameters * 2, *options, 4, 1))


def test_flops_of_blocks_that_merge() -> None:
    parameters, options = block_arguments(block_parameters(48, 3, 16, 96, extras=False), 3, "gelu", "fp32")
    x = draw(2, 21, 48)
    counts = []
    for call in (
        lambda: OPS.packed_merging_blocks(x, None, parameters * 3, *options, 0, 1),
        lambda: OPS.packed_blocks(x, parameters * 3, [None] * 21, *options),
        lambda: OPS.packed_merging_blocks(x, None, parameters * 2, *options, 5, 1),
    ):
        with FlopCounterMode(display=False) as counter:
            call()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]

    def block(before: int, after: int) -> int:  # multiplications
        return 2 * (before * 4 * 48 * 48 + 2 * before * before * 48 + after * 2 * 48 * 96)

    assert counts[2] == 2 * (block(21, 16) + block(16, 11))


@pytest.mark.parametrize(("count", "prefix"), [(0, 1), (5, 1), (1, 10)])
def test_a_count_that_is_too_large_is_refused(count: int, prefix: int) -> None:
    with pytest.raises(RuntimeError, match="count must be from 1 to"):
        OPS.merge_tokens(draw(1, 10, 4), draw(1, 10, 1, 4), None, count, prefix)
