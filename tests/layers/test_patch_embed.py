"""The patch embedding agrees with a convolution, and with myrtle-vision's flattening."""

import pytest
import torch
from torch.nn import functional as F

from vitfast.layers import PaddedPatchEmbed, PatchEmbed


def test_channels_first_is_a_convolution() -> None:
    layer, images = PatchEmbed(12, 4, 3, 10).double(), torch.randn(2, 3, 12, 12, dtype=torch.float64)
    expected = F.conv2d(images, layer.proj.weight, layer.proj.bias, stride=4).flatten(2).transpose(1, 2)
    torch.testing.assert_close(layer(images), expected)


def test_channels_last_flattens_row_column_channel() -> None:
    layer = PatchEmbed(6, 3, 2, 5, patch_order="channels_last").double()
    images = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    for index, (row, column) in enumerate([(0, 0), (0, 3), (3, 0), (3, 3)]):
        pixels = [images[0, channel, row + y, column + x] for y in range(3) for x in range(3) for channel in range(2)]
        torch.testing.assert_close(layer(images)[0, index], layer.proj(torch.stack(pixels)))


def test_memory_order_of_the_images_does_not_matter() -> None:
    layer, images = PatchEmbed(12, 4, 3, 10), torch.randn(2, 3, 12, 12)
    torch.testing.assert_close(layer(images.to(memory_format=torch.channels_last)), layer(images))


@pytest.mark.parametrize("shape", [(2, 3, 12, 16), (2, 1, 12, 12), (3, 12, 12), (2, 3, 4, 4)])
def test_wrong_shape_says_what_is_expected(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images must have shape \[B, 3, 12, 12\], got ") as error:
        PatchEmbed(12, 4, 3, 10)(torch.zeros(shape))
    assert str(list(shape)) in str(error.value)


def test_integer_images_say_what_to_do() -> None:
    with pytest.raises(TypeError, match=r"floating point, got torch\.uint8; convert"):
        PatchEmbed(12, 4, 3, 10)(torch.zeros(1, 3, 12, 12, dtype=torch.uint8))


def test_empty_batch() -> None:
    assert PatchEmbed(12, 4, 3, 10)(torch.zeros(0, 3, 12, 12)).shape == (0, 9, 10)


@pytest.mark.parametrize(
    ("img_size", "patch_size", "padding"),
    [(16, 4, 0), (22, 5, 4), (20, 5, 3), (17, 4, 0), (18, 5, 1), (224, 23, 3)],
)
def test_padded_patches_are_a_convolution_with_padding(img_size: int, patch_size: int, padding: int) -> None:
    layer = PaddedPatchEmbed(img_size, patch_size, padding, 2, 6).double()
    images = torch.randn(2, 2, img_size, img_size, dtype=torch.float64)
    expected = F.conv2d(images, layer.proj.weight, layer.proj.bias, stride=patch_size, padding=padding)
    torch.testing.assert_close(layer(images), expected.flatten(2).transpose(1, 2))
