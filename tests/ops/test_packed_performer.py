"""A performer's attention of accelerated models, against the layers' in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from support.packed_cases import OPS, check_performer, draw, on_threads
from vitfast.ops.library import has_kernel

if not has_kernel("packed", "cpu"):
    pytest.skip("pure PyTorch: there are no packed operators", allow_module_level=True)


@pytest.mark.parametrize(("dim", "features"), [(64, 32), (8, 4), (7, 3), (33, 40), (1, 9), (100, 65)])
def test_performer(dim: int, features: int) -> None:
    for tokens in (1, 2, 13, 128, 129, 400):
        check_performer(draw(2, tokens, 3 * dim, scale=2 * dim**-0.5), draw(features, dim), 1e-8)


@pytest.mark.parametrize("size", [1e-20, 1e-3, 2.0, 4.0])
@pytest.mark.parametrize("epsilon", [1e-8, 0.5])
def test_features_of_any_magnitude(size: float, epsilon: float) -> None:
    """Small and large exponents; those of 4 underflow in float32 where the maxima are not taken out."""
    check_performer(draw(2, 300, 3 * 16) * size, draw(8, 16), epsilon)


def test_keys_with_large_logits_in_one_section() -> None:
    for token in (0, 127, 128, 299):
        kqv = draw(1, 300, 3 * 16)
        kqv[0, token, :16] = 0  # its features are far above those of the others
        kqv[0, :token, :16] *= 5
        check_performer(kqv, draw(8, 16), 1e-8)


def test_where_epsilon_outweighs_all_the_result_is_zero() -> None:
    kqv = draw(1, 10, 3 * 16)
    kqv[..., :32] *= 100
    assert (OPS.packed_performer(kqv, draw(8, 16), 1e-8) == 0).all()


def test_the_number_of_threads_and_the_batch_change_no_bit() -> None:
    kqv, projection = draw(5, 500, 3 * 20), draw(12, 20)
    results = on_threads((1, 2, 3, 7, 16), lambda: OPS.packed_performer(kqv, projection, 1e-8))
    single = OPS.packed_performer(kqv[3:4], projection, 1e-8)
    for result in results[1:]:
        assert torch.equal(result, results[0])
    assert torch.equal(single, results[0][3:4])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_non_finite_number_stays_where_it_counts(bad: float) -> None:
    kqv, projection = draw(3, 200, 3 * 16), draw(8, 16)
    expected = OPS.packed_performer(kqv, projection, 1e-8)
    kqv[0, 150, 2] = bad  # a key: every token of its image
    kqv[1, 3, 16 + 5] = bad  # a query: its token
    kqv[2, 70, 32 + 7] = bad  # a value: its channel
    out = OPS.packed_performer(kqv, projection, 1e-8)
    assert out[0].isnan().all()
    assert out[1, 3].isnan().all()
    assert not out[2, :, 7].isfinite().any()
    out[0], out[1, 3], out[2, :, 7] = expected[0], expected[1, 3], expected[2, :, 7]
    assert torch.equal(out, expected)


def test_tokens_may_lie_anyhow_or_be_none() -> None:
    kqv, projection = draw(2, 9, 3 * 8), draw(4, 8)
    expected = OPS.packed_performer(kqv, projection, 1e-8)
    assert torch.equal(
        OPS.packed_performer(kqv.transpose(1, 2).contiguous().transpose(1, 2), projection, 1e-8), expected
    )
    assert torch.equal(OPS.packed_performer(kqv, projection.t().contiguous().t(), 1e-8), expected)
    assert OPS.packed_performer(kqv[:0], projection, 1e-8).shape == (0, 9, 8)
    assert OPS.packed_performer(kqv[:, :0], projection, 1e-8).shape == (2, 0, 8)


def test_the_fake_kernel_and_the_operations() -> None:
    kqv, projection = draw(2, 9, 3 * 8), draw(4, 8)
    torch.library.opcheck(OPS.packed_performer.default, (kqv, projection, 1e-8))
    with FlopCounterMode(display=False) as counter:
        OPS.packed_performer(kqv, projection, 1e-8)
    assert counter.get_total_flops() == 4 * 2 * 2 * 9 * 8 * 4


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kqv": torch.zeros(2, 9, 25)}, "kqv must be float32"),
        ({"kqv": torch.zeros(9, 24)}, "kqv must be float32"),
        ({"kqv": torch.zeros(2, 9, 24).double()}, "kqv must be float32"),
        ({"projection": torch.zeros(4, 7)}, "projection must be float32"),
        ({"projection": torch.zeros(0, 8)}, "projection must be float32"),
        ({"epsilon": 0.0}, "epsilon must be above 0"),
    ],
)
def test_wrong_arguments_are_rejected(changed: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"kqv": torch.zeros(2, 9, 24), "projection": torch.zeros(4, 8), "epsilon": 1e-8}
    with pytest.raises(RuntimeError, match=message):
        OPS.packed_performer(**{**arguments, **changed})
