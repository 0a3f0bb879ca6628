"""Token merging of accelerated models in one operator, against the layer in PyTorch."""

from __future__ import annotations

import pytest
import torch

from support.packed_cases import OPS, check_merging, draw, on_threads
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


@pytest.mark.parametrize(("count", "prefix"), [(0, 1), (5, 1), (1, 10)])
def test_a_count_that_is_too_large_is_refused(count: int, prefix: int) -> None:
    with pytest.raises(RuntimeError, match="count must be from 1 to"):
        OPS.merge_tokens(draw(1, 10, 4), draw(1, 10, 1, 4), None, count, prefix)
