"""Overlapping patches: which pixels, in which order."""

import pytest
import torch

from vitfast.layers.soft_split import SoftSplit


@pytest.mark.parametrize(("patch_size", "stride", "padding"), [(3, 2, 1), (5, 3, 2), (4, 4, 0), (3, 1, 0)])
def test_every_patch_is_flattened_by_channel_row_and_column(patch_size: int, stride: int, padding: int) -> None:
    split, images = SoftSplit(patch_size, stride, padding), torch.randn(2, 3, 9, 9)
    padded = torch.zeros(2, 3, 9 + 2 * padding, 9 + 2 * padding)
    padded[:, :, padding : padding + 9, padding : padding + 9] = images
    starts = range(0, 9 + 2 * padding - patch_size + 1, stride)
    expected = [padded[:, :, y : y + patch_size, x : x + patch_size].flatten(1) for y in starts for x in starts]
    assert torch.equal(split(images), torch.stack(expected, dim=1))
    assert split.grid_size(9) == len(starts)


def test_grid_size_of_an_image_without_room_for_a_patch() -> None:
    assert SoftSplit(7, 4, 2).grid_size(3) == 1
    assert SoftSplit(7, 4, 2).grid_size(2) < 1
