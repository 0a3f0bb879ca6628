"""A linear classifier on features."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vitfast.errors import UserError
from vitfast.evaluation.linear_probe import LINEAR_PROTOCOLS, linear_accuracy

SHORT = {name: replace(protocol, epochs=8) for name, protocol in LINEAR_PROTOCOLS.items()}


def separable(count: int):
    labels = torch.arange(count) % 3
    return 5 * torch.eye(3, 8)[labels] + 0.1 * torch.randn(count, 8), labels


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("count", [257, 300])  # the last batch of 257 has one image
def test_separable_classes_are_learned(name, count):
    train, test = separable(count), separable(30)
    state = torch.get_rng_state()
    # at VISSL's learning rate eight epochs of two steps are few
    protocol = replace(SHORT[name], lr=max(SHORT[name].lr, 0.1))
    assert linear_accuracy(*train, *test, num_classes=3, protocol=protocol) == 1
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"


def test_the_protocols_are_the_published_ones():
    original, vissl = LINEAR_PROTOCOLS["original"], LINEAR_PROTOCOLS["vissl"]
    assert (original.epochs, original.lr, original.weight_decay, original.milestones) == (100, 0.3, 1e-6, ())
    assert (original.nesterov, original.batch_norm) == (False, False)
    assert (vissl.epochs, vissl.lr, vissl.weight_decay, vissl.milestones) == (28, 0.01, 5e-4, (8, 16, 24))
    assert (vissl.nesterov, vissl.batch_norm) == (True, True)


def test_batch_norm_makes_the_scale_of_features_irrelevant():
    (train, labels), (test, test_labels) = separable(64), separable(30)
    noisy, noisy_test = train + 3 * torch.randn(64, 8), test + 3 * torch.randn(30, 8)
    found = [
        linear_accuracy(
            scale * noisy,
            labels,
            scale * noisy_test,
            test_labels,
            num_classes=3,
            protocol=replace(protocol, epochs=100),
        )
        for protocol in (SHORT["vissl"], SHORT["original"])
        for scale in (1, 64)
    ]
    assert found[0] == found[1] > 1 / 3
    assert found[2] != found[3]


def test_labels_without_relation_to_features_stay_at_chance():
    train, test = torch.randn(300, 4), torch.randn(300, 4)
    labels = torch.randint(3, (300,))
    found = linear_accuracy(train, labels, test, labels, num_classes=3, protocol=SHORT["original"])
    assert abs(found - 1 / 3) < 0.12


def test_what_cannot_be_fitted_is_an_error():
    train, test = separable(9), separable(9)
    with pytest.raises(UserError, match=r"diverged with lr=0\.3"):
        linear_accuracy(1e38 * train[0], train[1], *test, num_classes=3, protocol=SHORT["original"])
    with pytest.raises(UserError, match="at least two training images, got 1"):
        linear_accuracy(train[0][:1], train[1][:1], *test, num_classes=3, protocol=SHORT["vissl"])
