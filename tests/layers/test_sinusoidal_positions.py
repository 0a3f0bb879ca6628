"""The table of sinusoids."""

import math

import pytest

from vitfast.layers import sinusoidal_positions


def test_every_entry() -> None:
    table = sinusoidal_positions(5, 6)
    assert table.shape == (1, 5, 6)
    for position in range(5):
        for channel in range(6):
            angle = position / 10000 ** (2 * (channel // 2) / 6)
            expected = math.cos(angle) if channel % 2 else math.sin(angle)
            assert table[0, position, channel].item() == pytest.approx(expected, abs=1e-7)
