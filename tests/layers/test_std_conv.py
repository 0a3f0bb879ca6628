"""JAX's SAME padding."""

import pytest
import torch

from vitfast.layers.std_conv import pad_same


@pytest.mark.parametrize(
    ("size", "kernel_size", "stride", "before", "after"),
    [
        # jax.lax.padtype_to_pads((size,), (kernel_size,), (stride,), "SAME")
        (224, 7, 2, 2, 3),
        (225, 7, 2, 3, 3),
        (112, 3, 2, 0, 1),
        (113, 3, 2, 1, 1),
        (56, 3, 1, 1, 1),
        (56, 1, 2, 0, 0),
        (1, 3, 2, 1, 1),
        (5, 2, 5, 0, 0),
        (6, 2, 5, 0, 1),
    ],
)
def test_as_in_jax(size: int, kernel_size: int, stride: int, before: int, after: int) -> None:
    x = torch.rand(2, 3, size, 4)
    padded = pad_same(x, kernel_size, stride, value=7.0)
    assert padded.shape[2] == before + size + after
    assert (padded[:, :, :before] == 7.0).all()
    assert (padded[:, :, before + size :] == 7.0).all()
    columns = padded.shape[3] - 4
    assert torch.equal(padded[:, :, before : before + size, columns // 2 : columns // 2 + 4], x)
    assert len(range(0, padded.shape[2] - kernel_size + 1, stride)) == -(-size // stride)


def test_nothing_to_pad() -> None:
    x = torch.rand(1, 1, 6, 6)
    assert pad_same(x, 1, 2) is x
