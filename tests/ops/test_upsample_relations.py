"""Relations on a finer grid: zeros of the matrix. Other properties are in the tests of all operators."""

from __future__ import annotations

import pytest
import torch

from vitfast.layers import GridUpsample
from vitfast.ops import upsample_relations
from vitfast.ops.library import has_kernel


@pytest.mark.skipif(not has_kernel("upsample_relations", "cpu"), reason="torch's product spreads a NaN")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_values_stay_where_they_are_used(value: float) -> None:
    matrix = GridUpsample(3, 4).matrix
    x = torch.randn(2, 3, 10, 10)
    spoilt = x.clone()
    spoilt[1, 2, 4, 7] = value
    out, expected = upsample_relations(spoilt, matrix), upsample_relations(x, matrix)
    uses = torch.zeros(2, 3, 17, 17, dtype=torch.bool)
    uses[1, 2] = (matrix[:, 4] != 0)[:, None] & (matrix[:, 7] != 0)
    assert uses.any()
    assert not out[uses].isfinite().any()
    assert torch.equal(out[~uses], expected[~uses])


def test_the_matrix_may_have_another_type() -> None:
    matrix, x = GridUpsample(2, 3).matrix, torch.randn(1, 2, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(upsample_relations(x, matrix.double()), upsample_relations(x, matrix))
        assert upsample_relations(x.bfloat16(), matrix).dtype == torch.bfloat16
