"""The padded patch embedding is a convolution with padding."""

import pytest
import torch
from torch.nn import functional as F

from vitfast.layers import PaddedPatchEmbed


@pytest.mark.parametrize(
    ("img_size", "patch_size", "padding"),
    [(16, 4, 0), (22, 5, 4), (20, 5, 3), (17, 4, 0), (18, 5, 1), (224, 23, 3)],
)
def test_is_a_convolution(img_size: int, patch_size: int, padding: int) -> None:
    layer = PaddedPatchEmbed(img_size, patch_size, padding, 2, 6).double()
    images = torch.randn(2, 2, img_size, img_size, dtype=torch.float64)
    expected = F.conv2d(images, layer.proj.weight, layer.proj.bias, stride=patch_size, padding=padding)
    torch.testing.assert_close(layer(images), expected.flatten(2).transpose(1, 2))
