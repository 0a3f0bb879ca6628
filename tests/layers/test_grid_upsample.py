"""The matrix of the reuse upsampling against the two steps that it replaces."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vitfast.layers import GridUpsample
from vitfast.layers.grid_upsample import axis_upsample_matrix

PAIRS = [(7, 10), (10, 14), (4, 8), (2, 4), (2, 3), (3, 7), (5, 5), (1, 3), (3, 2), (7, 14), (3, 10)]

# row -> {column: value}, from a step-by-step port of the published code
SEVEN_TO_TEN = [
    {0: 1},
    {0: 1 / 2, 1: 1 / 2},
    {1: 2 / 3, 2: 1 / 3},
    {2: 1},
    {2: 1 / 2, 3: 1 / 2},
    {3: 1 / 2, 4: 1 / 2},
    {4: 1},
    {4: 1 / 3, 5: 2 / 3},
    {5: 1 / 2, 6: 1 / 2},
    {6: 1},
]
TEN_TO_FOURTEEN = [
    {0: 1},
    {0: 1 / 2, 1: 1 / 2},
    {1: 2 / 3, 2: 1 / 3},
    {2: 1},
    {2: 1 / 3, 3: 2 / 3},
    {3: 1 / 2, 4: 1 / 2},
    {4: 1},
    {5: 1},
    {5: 1 / 2, 6: 1 / 2},
    {6: 2 / 3, 7: 1 / 3},
    {7: 1},
    {7: 1 / 3, 8: 2 / 3},
    {8: 1 / 2, 9: 1 / 2},
    {9: 1},
]


def two_steps(grids: Tensor, to_size: int) -> Tensor:
    """Nearest to a whole multiple, then adaptive average pooling: ``[..., g, g]`` to ``[..., G, G]``."""
    from_size = grids.shape[-1]
    larger = from_size * -(-to_size // from_size)
    flat = grids.reshape(1, -1, from_size, from_size)
    pooled = F.adaptive_avg_pool2d(F.interpolate(flat, size=(larger, larger), mode="nearest"), to_size)
    return pooled.reshape(*grids.shape[:-2], to_size, to_size)


@pytest.mark.parametrize(("rows", "sizes"), [(SEVEN_TO_TEN, (7, 10)), (TEN_TO_FOURTEEN, (10, 14))])
def test_published_rows(rows: list[dict[int, float]], sizes: tuple[int, int]) -> None:
    expected = torch.zeros(sizes[1], sizes[0])
    for row, entries in enumerate(rows):
        for column, value in entries.items():
            expected[row, column] = value
    torch.testing.assert_close(axis_upsample_matrix(*sizes), expected)


@pytest.mark.parametrize(("from_size", "to_size"), PAIRS)
def test_rows_sum_to_one(from_size: int, to_size: int) -> None:
    matrix = axis_upsample_matrix(from_size, to_size)
    assert matrix.shape == (to_size, from_size)
    torch.testing.assert_close(matrix.sum(dim=1), torch.ones(to_size))


@pytest.mark.parametrize(("from_size", "to_size"), PAIRS)
def test_features(from_size: int, to_size: int) -> None:
    features = torch.randn(2, 1 + from_size**2, 3)
    grid = features[:, 1:].transpose(1, 2).unflatten(2, (from_size, from_size))
    expected = F.pad(two_steps(grid, to_size).flatten(2).transpose(1, 2), (0, 0, 1, 0))
    out = GridUpsample(from_size, to_size).features(features)
    torch.testing.assert_close(out, expected)
    assert not out[:, 0].any()


@pytest.mark.parametrize(("from_size", "to_size"), PAIRS)
def test_relations(from_size: int, to_size: int) -> None:
    """Columns, then rows, each with the class token apart."""

    def columns(x: Tensor) -> Tensor:
        grid = x[..., 1:].unflatten(-1, (from_size, from_size))
        return torch.cat([x[..., :1], two_steps(grid, to_size).flatten(-2)], dim=-1)

    relations = torch.randn(2, 3, 1 + from_size**2, 1 + from_size**2)
    expected = columns(columns(relations).transpose(2, 3)).transpose(2, 3)
    torch.testing.assert_close(GridUpsample(from_size, to_size).relations(relations), expected)


def test_nothing_is_saved() -> None:
    assert not GridUpsample(2, 4).state_dict()


@pytest.mark.parametrize(("sizes", "name"), [((0, 4), "from_size"), ((4, 0), "to_size")])
def test_sizes_below_one(sizes: tuple[int, int], name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        axis_upsample_matrix(*sizes)
