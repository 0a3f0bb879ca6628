"""Saving and restoring the random generators."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
import torch

from vitfast.errors import UserError
from vitfast.training.random_state import (
    capture_random_state,
    restore_random_state,
    seed_everything,
)


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002 (it is what is restored)


def test_a_seed_repeats_all_generators():
    seed_everything(2**63 - 1)
    first = draw()
    seed_everything(2**63 - 1)
    assert draw() == first
    seed_everything(1)
    assert all(a != b for a, b in zip(draw(), first, strict=True))


def test_a_saved_state_repeats_all_generators():
    seed_everything(5)
    draw()
    file = io.BytesIO()
    torch.save(capture_random_state(), file)
    expected = [draw() for _ in range(3)]
    seed_everything(6)
    file.seek(0)
    restore_random_state(torch.load(file, weights_only=True))
    assert [draw() for _ in range(3)] == expected


def test_a_foreign_state_is_refused():
    with pytest.raises(UserError, match="cannot be restored"):
        restore_random_state({"python": 3})
