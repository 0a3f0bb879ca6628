"""Stochastic depth drops whole samples in training and keeps the mean."""

import torch

from vitfast.layers import DropPath


def test_identity_in_evaluation_and_without_a_rate() -> None:
    x = torch.randn(4, 3)
    assert DropPath(0.5).eval()(x) is x
    assert DropPath(0.0).train()(x) is x


def test_drops_whole_samples_and_scales_the_kept() -> None:
    out = DropPath(0.25).train()(torch.ones(20_000, 2, 3))
    samples = out.flatten(1)
    assert (samples == samples[:, :1]).all()
    assert set(samples[:, 0].tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    # five standard deviations of the share of dropped samples
    assert abs((samples[:, 0] == 0).float().mean().item() - 0.25) < 5 * (0.25 * 0.75 / 20_000) ** 0.5
