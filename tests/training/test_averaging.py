"""The moving average of the weights."""

from __future__ import annotations

import torch
from torch import nn

from vitfast.training.averaging import create_average


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
