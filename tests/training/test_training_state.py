"""The moving average of the weights, and the state of the random generators."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
import torch
from torch import nn

from vitfast.errors import UserError
from vitfast.training.training_state import (
    capture_random_state,
    create_average,
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


def test_the_first_update_copies_and_later_ones_average():
    module = nn.Linear(3, 2)
    average = create_average(module, 0.75)
    assert average is not None
    with torch.no_grad():
        module.weight.fill_(4.0)
    average.update_parameters(module)
    assert torch.equal(average.module.weight, torch.full((2, 3), 4.0))
    with torch.no_grad():
        module.weight.fill_(8.0)
    average.update_parameters(module)
    torch.testing.assert_close(average.module.weight, torch.full((2, 3), 5.0))
    assert torch.equal(module.weight, torch.full((2, 3), 8.0))


def test_buffers_are_averaged_too():
    module = nn.BatchNorm1d(2)
    average = create_average(module, 0.5)
    assert average is not None
    average.update_parameters(module)
    module.running_mean.fill_(2.0)
    average.update_parameters(module)
    torch.testing.assert_close(average.module.running_mean, torch.ones(2))


def test_no_decay_means_no_average():
    assert create_average(nn.Linear(1, 1), None) is None
